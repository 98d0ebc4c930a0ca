"""The network as an ONNX graph, and how closely onnxruntime follows PyTorch."""

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from model import SRCNN


def build(model: SRCNN, size: list[int] | None, fp16: bool, opset: int) -> ModelProto:
    """Return the network as an ONNX graph, written down layer by layer.

    Tracing would give the same five nodes, for the opsets that the installed PyTorch has.

    Args:
        model: any SRCNN.
        size: height and width of the input, or None for free ones, and a free batch.
        fp16: cast the input to half precision, compute, and cast the output back.
        opset: version of the operator set.
    """
    dtype = np.float16 if fp16 else np.float32
    weights = [
        numpy_helper.from_array(tensor.numpy().astype(dtype), key)
        for key, tensor in model.state_dict().items()
    ]
    nodes = [helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT16)] if fp16 else []
    layers = (
        (model.conv1, "x" if fp16 else "input"),
        (model.conv2, "relu1"),
        (model.conv3, "relu2"),
    )
    for i, (conv, x) in enumerate(layers, start=1):
        y = "output" if i == 3 and not fp16 else f"y{i}"
        names = [x, f"conv{i}.weight", f"conv{i}.bias"]
        pads = [k // 2 for k in conv.kernel_size] * 2
        nodes.append(helper.make_node("Conv", names, [y], kernel_shape=conv.kernel_size, pads=pads))
        if i < 3:
            nodes.append(helper.make_node("Relu", [y], [f"relu{i}"]))
    if fp16:
        nodes.append(helper.make_node("Cast", ["y3"], ["output"], to=TensorProto.FLOAT))
    batch, *sides = [1, *size] if size else ["batch", "height", "width"]
    shape = [batch, model.conv1.in_channels, *sides]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("input", "output")
    )
    graph = helper.make_graph(nodes, "SRCNN", [x], [y], weights)
    versions = [helper.make_opsetid("", opset)]
    onnx_model = helper.make_model(
        graph,
        opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions),  # what old readers understand
        producer_name="SRCNN",
    )
    checker.check_model(onnx_model, full_check=True)
    return onnx_model


def largest_difference(model: SRCNN, onnx_model: ModelProto, luminance: np.ndarray) -> float:
    """Return how far onnxruntime's output is from PyTorch's in fp32, at the worst pixel."""
    session = onnxruntime.InferenceSession(
        onnx_model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.repeat(luminance[None, None], model.conv1.in_channels, axis=1)
    (output,) = session.run(["output"], {"input": x})
    with torch.inference_mode():
        return float(np.abs(output - model(torch.from_numpy(x)).numpy()).max())
