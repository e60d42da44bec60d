"""ONNX models, held in onnx-ir: load, fold, place, encode, write, verify."""
