"""What a bundle will take, by formula. Loads neither onnx_ir nor a runtime."""
