"""ONNX: checkpoints as models of standard and custom operators. In here too, `import onnx` means the library."""
