"""Models of other libraries, converted once at the coordinator: ONNX, and through it Keras and
TensorFlow.
"""
