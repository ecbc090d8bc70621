"""`unskill onnx --quantize`: quantized weights, and interventions that were fitted on them."""
