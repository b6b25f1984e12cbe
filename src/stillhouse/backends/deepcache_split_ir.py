"""Split of a U-Net's OpenVINO graph (.xml) for DeepCache, as `deepcache_split` splits ONNX graphs.

A quantised U-Net keeps the names of its nodes, by which the blocks are found. The XML is edited, and the .bin file
beside it linked, so that the weights of the graphs take no more room than those of one.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from stillhouse.backends.signature import AXES_KEY

Port = tuple[str, str]
"""Id of a layer and of one of its output ports."""


@dataclass(slots=True)
class IrGraph:
    """A parsed OpenVINO graph.

    Args:
        root: the document.
        layers: its layers by id.
        sources: the port that each input reads, by layer and port of the input.
    """

    root: Element
    layers: dict[str, Element] = field(default_factory=dict)
    sources: dict[Port, Port] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "IrGraph":
        """Parse a graph's .xml file."""
        root = ElementTree.parse(path).getroot()
        graph = cls(root)
        graph.layers = {layer.attrib["id"]: layer for layer in root.findall("./layers/layer")}
        for edge in root.findall("./edges/edge"):
            ends = edge.attrib
            graph.sources[ends["to-layer"], ends["to-port"]] = ends["from-layer"], ends["from-port"]
        return graph

    def inputs(self, layer: str) -> list[Port]:
        """Return the ports that a layer reads, in the order of its inputs."""
        ports = [port.attrib["id"] for port in self.layers[layer].findall("./input/port")]
        return [self.sources[layer, port] for port in ports]

    def ancestors(self, layers: Iterable[str], cut: Port | None = None) -> set[str]:
        """Return the ids of layers and of all that they depend on, by other ways than through the port `cut`."""
        found: set[str] = set()
        waiting = list(layers)
        while waiting:
            layer = waiting.pop()
            if layer not in found:
                found.add(layer)
                waiting += [port[0] for port in self.inputs(layer) if port != cut]
        return found

    def port(self, port: Port) -> Element:
        """Return the element of an output port."""
        layer, number = port
        return next(found for found in self.layers[layer].findall("./output/port") if found.attrib["id"] == number)

    def of_type(self, kind: str) -> list[str]:
        """Return the ids of the layers of a type, such as Result."""
        return [number for number, layer in self.layers.items() if layer.attrib["type"] == kind]


def find_joins(graph: IrGraph, pattern: re.Pattern[str]) -> dict[int, list[str]]:
    """Return the ids of the Concat layers whose name matches a pattern, by the number in it, in the file's order."""
    joins: defaultdict[int, list[str]] = defaultdict(list)
    for number in graph.of_type("Concat"):
        if match := pattern.fullmatch(graph.layers[number].attrib["name"]):
            joins[int(match[1])].append(number)
    return joins


def deep_ports(graph: IrGraph, join: str, is_below: Callable[[str], bool]) -> list[Port]:
    """Return the inputs of a Concat layer that depend on the deeper blocks.

    Args:
        graph: the U-Net's graph.
        join: id of the layer.
        is_below: whether a layer of a name lies in the deeper blocks.
    """
    return [
        port
        for port in graph.inputs(join)
        if any(is_below(graph.layers[layer].attrib["name"]) for layer in graph.ancestors([port[0]]))
    ]


def with_output(graph: IrGraph, port: Port, name: str) -> IrGraph:
    """Return a graph with one more output, of the name `name`: the tensor at a port."""
    full = _copy(graph)
    tensor = full.port(port)
    tensor.attrib["names"] = ",".join(filter(None, (tensor.attrib.get("names", ""), name)))
    result = _add_layer(full, name, "Result", {"output_names": name})
    read = ElementTree.SubElement(ElementTree.SubElement(result, "input"), "port", {"id": "0"})
    read.attrib["precision"] = tensor.attrib["precision"]
    read.extend(deepcopy(tensor.findall("dim")))
    _connect(full, port, (result.attrib["id"], "0"))
    return full


def with_input(graph: IrGraph, port: Port, name: str) -> IrGraph:
    """Return a graph that takes the tensor at a port as an input, without the layers that only compute it."""
    needed = graph.ancestors(graph.of_type("Result"), cut=port)
    shallow = _copy(graph)
    tensor = deepcopy(shallow.port(port))
    tensor.attrib["names"], tensor.attrib["id"] = name, "0"
    lengths = [dim.text or "" for dim in tensor.findall("dim")]
    parameter = _add_layer(shallow, name, "Parameter", {})
    shape = ",".join("?" if length == "-1" else length for length in lengths)
    kind = {"FP32": "f32", "FP16": "f16", "BF16": "bf16"}[tensor.attrib["precision"]]
    ElementTree.SubElement(parameter, "data", {"shape": shape, "element_type": kind})
    ElementTree.SubElement(parameter, "output").append(tensor)
    for place, source in list(shallow.sources.items()):
        if source == port and place[0] in needed:
            _disconnect(shallow, place)
            _connect(shallow, (parameter.attrib["id"], "0"), place)
    for number in set(shallow.layers) - needed - {parameter.attrib["id"]}:
        _remove(shallow, number)
    _note_axes(shallow, name, lengths)
    return shallow


def write_linked(graph: IrGraph, weights: Path, path: Path) -> None:
    """Write a graph, and link the file of its weights beside it; where files cannot be linked, copy it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    linked = path.with_suffix(".bin")
    try:
        ElementTree.ElementTree(graph.root).write(temporary)
        linked.unlink(missing_ok=True)
        try:
            linked.hardlink_to(weights)
        except OSError:
            shutil.copyfile(weights, linked)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(graph: IrGraph) -> IrGraph:
    root = deepcopy(graph.root)
    layers = {layer.attrib["id"]: layer for layer in root.findall("./layers/layer")}
    return IrGraph(root, layers, dict(graph.sources))


def _add_layer(graph: IrGraph, name: str, kind: str, attributes: dict[str, str]) -> Element:
    number = str(1 + max(map(int, graph.layers)))
    parent = graph.root.find("layers")
    assert parent is not None
    layer = ElementTree.SubElement(
        parent, "layer", {"id": number, "name": name, "type": kind, "version": "opset1", **attributes}
    )
    graph.layers[number] = layer
    return layer


def _remove(graph: IrGraph, number: str) -> None:
    layers, edges = graph.root.find("layers"), graph.root.find("edges")
    assert layers is not None and edges is not None
    layers.remove(graph.layers.pop(number))
    for edge in edges.findall("edge"):
        if number in (edge.attrib["from-layer"], edge.attrib["to-layer"]):
            edges.remove(edge)
    graph.sources = {place: port for place, port in graph.sources.items() if number not in (place[0], port[0])}


def _connect(graph: IrGraph, port: Port, place: Port) -> None:
    edges = graph.root.find("edges")
    assert edges is not None
    names = ("from-layer", "from-port", "to-layer", "to-port")
    ElementTree.SubElement(edges, "edge", dict(zip(names, (*port, *place), strict=True)))
    graph.sources[place] = port


def _disconnect(graph: IrGraph, place: Port) -> None:
    edges = graph.root.find("edges")
    assert edges is not None
    for edge in edges.findall("edge"):
        if (edge.attrib["to-layer"], edge.attrib["to-port"]) == place:
            edges.remove(edge)
    del graph.sources[place]


def _note_axes(graph: IrGraph, name: str, lengths: list[str]) -> None:
    """Name the axes of a new input as those of the first input, in the note that `read_openvino_model` made."""
    note = graph.root.find("/".join(("./rt_info", *AXES_KEY)))
    if note is None:
        return
    axes = json.loads(note.attrib["value"])
    first = next(iter(axes.values()))
    axes[name] = [
        int(length) if length != "-1" else axis for length, axis in zip(lengths, first, strict=len(lengths) == 4)
    ]
    inputs = {graph.layers[number].attrib["name"] for number in graph.of_type("Parameter")}
    note.attrib["value"] = json.dumps({key: value for key, value in axes.items() if key in inputs})
