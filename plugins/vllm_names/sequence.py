"""What one stage of a pipeline hands to the next."""

from typing import TYPE_CHECKING, Any

from mainboard.plugins.vllm_names.records import Record, configuration

if TYPE_CHECKING:
    from collections.abc import ItemsView

    import torch

__all__ = ["IntermediateTensors"]


@configuration
class IntermediateTensors(Record):
    """Tensors by name, such as hidden states and residuals; a slice takes that part of each."""

    tensors: "dict[str, torch.Tensor]"

    def __getitem__(self, key: str | slice) -> Any:
        if isinstance(key, slice):
            parts = {name: tensor[key] for name, tensor in self.tensors.items()}
            return type(self)(parts)
        return self.tensors[key]

    def __setitem__(self, key: str, value: "torch.Tensor") -> None:
        self.tensors[key] = value

    def __len__(self) -> int:
        return len(self.tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntermediateTensors):
            return NotImplemented
        names = self.tensors.keys()
        return names == other.tensors.keys() and all(
            self.tensors[name].equal(other.tensors[name]) for name in names
        )

    def items(self) -> "ItemsView[str, torch.Tensor]":
        """The names with their tensors."""
        return self.tensors.items()

    @staticmethod
    def empty_like(intermediate_tensors: "IntermediateTensors") -> "IntermediateTensors":
        """Tensors of the same shapes whose values are not set."""
        import torch

        pairs = intermediate_tensors.items()
        return IntermediateTensors({name: torch.empty_like(tensor) for name, tensor in pairs})
