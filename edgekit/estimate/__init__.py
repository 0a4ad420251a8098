"""Estimates of a bundle's size, memory and cost by formula. Loads neither onnx_ir nor a runtime."""
