"""The HTTP service: the Open Inference Protocol, scores of image files, metrics, and a page for a browser.

Nothing in this package imports torch but `run_model`, which serves the folder of a run; a service of exported .onnx
files runs without torch.
"""
