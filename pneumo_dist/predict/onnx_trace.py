"""Turns the module of an ensemble into one ONNX model.

torch's exporter takes time in the square of the nodes, and an ensemble repeats a few architectures many times. So the
module is traced with an operator in the place of each network, and each architecture is traced once for each side that
it sees. The operators then become calls of these functions, with the weights of their network, and are inlined.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.predict.ensemble import Ensemble
from pneumo_dist.predict.onnx_graph import FILM, EnsembleGraph

# Fixed, so that another torch does not ask for a newer runtime.
OPSET = 20
_DOMAIN = "pneumo_dist"


class _Placeholder(torch.nn.Module):
    """Stands for a network in the trace of the ensemble."""

    def __init__(self, number: int, model: ModelConfig) -> None:
        super().__init__()
        self._number, self._model = number, model

    def forward(self, images: torch.Tensor) -> Any:
        """Return nodes for logits and, with a head, class logits; for a classifier, for class logits alone."""
        count, side = images.shape[0], images.shape[-1]
        attributes: dict[str, Any] = {"number": self._number, "side": side}
        has_map, has_head = not self._model.is_classifier, self._model.classification is not None
        shapes = [shape for shape, has in (((count, 1, side, side), has_map), ((count, 1), has_head)) if has]
        outputs = torch.onnx.ops.symbolic_multi_out(
            f"{_DOMAIN}::network", (images,), attributes, dtypes=[torch.float32] * len(shapes), shapes=shapes, version=1
        )
        if not has_map:
            return None, outputs[0]
        return tuple(outputs) if has_head else outputs[0]


def onnx_model(ensemble: Ensemble, networks: Sequence[torch.nn.Module]) -> onnx_ir.Model:
    """Return an ensemble's ONNX model, whose number of films is free.

    It holds nothing of the machine that made it: torch would write its file names into every node.

    Args:
        ensemble: The ensemble.
        networks: Its networks, in float32 and in evaluation mode. The model shares their memory.
    """
    models = [network.model for network in ensemble.networks]
    graph = EnsembleGraph(ensemble, [_Placeholder(*each) for each in enumerate(models)]).eval()
    films = torch.zeros(2, ensemble.film_size, ensemble.film_size, dtype=torch.uint8)
    model = _exported(graph, films, FILM, graph.outputs)
    functions: dict[Any, tuple[onnx_ir.Function, list[str]]] = {}
    weights: dict[str, onnx_ir.Value] = {}
    sources = [network.name for network in ensemble.networks]
    for node in [each for each in model.graph if each.domain == _DOMAIN]:
        number, side = (node.attributes[name].as_int() for name in ("number", "side"))
        config, network = ensemble.networks[number].model, networks[number]
        key = (config.model_dump_json(), side)
        if key not in functions:
            functions[key] = _function(network, config.in_channels, side, f"network{len(functions)}")
        function, names = functions[key]
        state = network.state_dict()
        first = sources.index(sources[number])  # members with the same checkpoint share its weights
        for name in names:
            if f"{first}.{name}" not in weights:
                weights[f"{first}.{name}"] = _initializer(f"{first}.{name}", state[name])
        images = node.inputs[0]
        node.op_type = function.name
        node.attributes.clear()
        node.resize_inputs(1 + len(names))
        for place, value in enumerate([images, *(weights[f"{first}.{name}"] for name in names)]):
            node.replace_input_with(place, value)
    for value in weights.values():
        model.graph.register_initializer(value)
    for function, _ in functions.values():
        model.functions[function.identifier()] = function
    model.opset_imports[_DOMAIN] = 1
    passes.InlinePass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    return model


def _exported(
    module: torch.nn.Module, example: torch.Tensor, name: str, outputs: list[str], **options: Any
) -> onnx_ir.Model:
    """Return torch's ONNX model of a module. The example has two films: one would become a constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own code
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[name],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            **options,
        )
    assert program is not None
    model: onnx_ir.Model = program.model
    return model


def _function(network: torch.nn.Module, channels: int, side: int, name: str) -> tuple[onnx_ir.Function, list[str]]:
    """Return a network as a function of its images and weights, and the names of these weights in order."""
    model = _exported(network, torch.zeros(2, channels, side, side), "images", [], optimize=False)
    graph, state = model.graph, network.state_dict()
    names = [each for each in graph.initializers if each in state]
    for each in names:
        # An input, so that nothing is computed from the weights of this one network.
        value = graph.initializers.pop(each)
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize(model)
    for constant in list(graph.initializers.values()):
        assert constant.const_value is not None
        node = onnx_ir.node("Constant", [], {"value": constant.const_value})
        constant.replace_all_uses_with(node.outputs[0])
        graph.insert_before(graph[0], node)
    graph.initializers.clear()
    return onnx_ir.Function(_DOMAIN, name, graph=graph, attributes=[]), names


def _initializer(name: str, tensor: torch.Tensor) -> onnx_ir.Value:
    value = onnx_ir.tensor(tensor.detach().numpy(), name=name)
    return onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(tensor.shape), type=onnx_ir.TensorType(value.dtype), const_value=value
    )
