"""A model as one file: an HTML page or an ONNX graph."""
