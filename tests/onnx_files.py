"""Small ONNX files for tests, written field by field as in onnx.proto3."""

import torch


def varint(value):
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number, value):
    """A field: a whole number, a text, or bytes of another message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name, values, more=b""):
    dims = b"".join(field(1, size) for size in values.shape)
    data = values.to(torch.float32).numpy().tobytes()
    return dims + field(2, 1) + field(8, name) + (more or field(9, data))


def node(kind, inputs, output, attributes=b"", domain=""):
    names = b"".join(field(1, name) for name in inputs)
    return names + field(2, output) + field(4, kind) + field(7, domain) + attributes


def value(name, *sizes):
    """An input or output of float32; a size is a number or a name."""
    dims = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def model(graph):
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


def pooled_conv(weight_OCHW, batch="N", more=b"", domain=""):
    """Convolution with stride 2, ReLU and the mean over all pixels: (B, 3, S, S) to (B, O, 1, 1).

    ``more`` replaces the weights' data, and ``domain`` is that of the ReLU.
    """
    stride = field(5, field(1, "strides") + field(8, 2) + field(8, 2) + field(20, 7))
    nodes = (
        node("Conv", ("image", "weight"), "conv", stride),
        node("Relu", ("conv",), "relu", domain=domain),
        node("GlobalAveragePool", ("relu",), "features"),
    )
    graph = b"".join(field(1, one) for one in nodes) + field(2, "net")
    graph += field(5, tensor("weight", weight_OCHW, more))
    graph += field(11, value("image", batch, 3, "S", "S"))
    return model(graph + field(12, value("features", batch, len(weight_OCHW), 1, 1)))
