"""The CIFAR ResNet-20 and its images, from the folder of real models and data."""

import itertools

import numpy as np
import onnx

IMAGE_MEAN, IMAGE_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet20(weights, path):
    """The CIFAR ResNet-20 of He et al. 2015: shortcuts take every other place, and pad channels with zeros."""
    from safetensors.numpy import load_file

    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    stored = {name: array for name, array in load_file(weights).items() if array.dtype == np.float32}
    nodes, constants = [], dict(stored)

    def node(op, inputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(name, array):
        constants[name] = np.array(array)
        return name

    def conv_bn(value, conv, norm, stride=1):
        given = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
        y = node("Conv", [value, f"{conv}.weight"], f"{conv}.y", **given)
        statistics = [f"{norm}.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
        return node("BatchNormalization", [y, *statistics], f"{norm}.y")

    x = node("Relu", [conv_bn("x", "conv1", "bn1")], "relu1")
    for layer, block in itertools.product((1, 2, 3), (0, 1, 2)):
        name = f"layer{layer}.{block}"
        stride = 2 if layer > 1 and block == 0 else 1
        y = node("Relu", [conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride)], f"{name}.relu1")
        y = conv_bn(y, f"{name}.conv2", f"{name}.bn2")
        if stride == 2:
            ends = [constant(f"{name}.{key}", np.array(v)) for key, v in (("from", [0, 0]), ("to", [99, 99]))]
            axes = [
                constant(f"{name}.{key}", np.array(v)) for key, v in (("axes", [2, 3]), ("steps", [2, 2]))
            ]
            more = 8 * (layer - 1)
            pads = constant(f"{name}.pads", np.array([0, more, 0, 0, 0, more, 0, 0]))
            x = node("Pad", [node("Slice", [x, *ends, *axes], f"{name}.every"), pads], f"{name}.skip")
        x = node("Relu", [node("Add", [y, x], f"{name}.sum")], f"{name}.relu2")
    flat = node("Flatten", [node("GlobalAveragePool", [x], "pooled")], "flat")
    node("Gemm", [flat, "linear.weight", "linear.bias"], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "resnet20",
        [helper.make_tensor_value_info("x", float_type, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", float_type, ["batch", 10])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def images(path, start, count):
    with np.load(path) as arrays:
        x, labels = arrays["x"][start : start + count], arrays["labels"][start : start + count]
    x = (x.astype(np.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_SPREAD)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), labels
