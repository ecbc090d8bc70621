"""The model card: text, YAML head and charts."""
