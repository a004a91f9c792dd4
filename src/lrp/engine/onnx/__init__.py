"""The explanation program as one ONNX file, for machines without torch."""
