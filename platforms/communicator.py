"""Collective operations of a group of processes, one device each, over `torch.distributed`.

NCCL, RCCL or Gloo does the work, whichever backend the group was made with; no algorithm is here.
What is here is the shape that engines expect: the class is named by a platform's
`get_device_communicator_cls`, ranks are those within the group, and a dimension may be any.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch.distributed import ProcessGroup

__all__ = ["DeviceCommunicator"]


class DeviceCommunicator:
    """The collectives of one group.

    Args:
        cpu_group: the group for messages between the hosts' processors.
        device: where this process's tensors are; the CPU by default.
        device_group: the group for tensors on devices; `cpu_group` by default.
        unique_name: a name of the group, for people.
    """

    def __init__(
        self,
        cpu_group: ProcessGroup,
        device: torch.device | None = None,
        device_group: ProcessGroup | None = None,
        unique_name: str = "",
    ) -> None:
        import torch
        import torch.distributed as dist

        self._dist = dist
        self._torch = torch
        self.device = device or torch.device("cpu")
        self.cpu_group = cpu_group
        self.device_group = device_group or cpu_group
        self.unique_name = unique_name
        self.ranks: list[int] = dist.get_process_group_ranks(cpu_group)
        self.world_size: int = len(self.ranks)
        self.global_rank: int = dist.get_rank()
        self.rank_in_group: int = self.ranks.index(self.global_rank)
        self.rank: int = self.rank_in_group

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            self._dist.all_reduce(input_, group=self.device_group)
        return input_

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Every process's tensor, one after the other along `dim`; all have the same shape."""
        dim = self._checked(input_, dim, "all_gather")
        if self.world_size == 1:
            return input_
        parts = input_.new_empty((self.world_size, *input_.shape))
        self._dist.all_gather_into_tensor(
            parts.view(-1), input_.contiguous().view(-1), group=self.device_group
        )
        return parts.movedim(0, dim).flatten(dim, dim + 1)

    def all_gatherv(
        self, input_: torch.Tensor, dim: int = 0, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The same for tensors of which process `i` has `sizes[i]` entries along `dim`.

        Raises:
            ValueError: the sizes are not one for each process, or not this tensor's.
        """
        if sizes is None:
            return self.all_gather(input_, dim)
        dim = self._checked(input_, dim, "all_gatherv")
        self._check_sizes(sizes, input_.shape[dim], "all_gatherv")
        if self.world_size == 1:
            return input_
        longest = max(sizes)
        first = input_.movedim(dim, 0)
        padded = first.new_zeros((longest, *first.shape[1:]))
        padded[: first.shape[0]] = first
        parts = self.all_gather(padded, 0).unflatten(0, (self.world_size, longest))
        whole = self._torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return whole.movedim(0, dim)

    def reduce_scatter(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """This process's part, along `dim`, of the sum over all processes.

        Raises:
            ValueError: the parts would not be equal.
        """
        dim = self._checked(input_, dim, "reduce_scatter")
        if input_.shape[dim] % self.world_size:
            raise ValueError(
                f"reduce_scatter was asked for {input_.shape[dim]} entries along dimension {dim}, "
                f"which {self.world_size} processes cannot share equally; use reduce_scatterv"
            )
        if self.world_size == 1:
            return input_
        first = input_.movedim(dim, 0).contiguous()
        part = first.new_empty((first.shape[0] // self.world_size, *first.shape[1:]))
        self._dist.reduce_scatter_tensor(part, first, group=self.device_group)
        return part.movedim(0, dim)

    def reduce_scatterv(
        self, input_: torch.Tensor, dim: int = 0, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        """The same where process `i` gets `sizes[i]` entries along `dim`.

        Raises:
            ValueError: the sizes are not one for each process, or do not add up.
        """
        if sizes is None:
            return self.reduce_scatter(input_, dim)
        dim = self._checked(input_, dim, "reduce_scatterv")
        if len(sizes) != self.world_size or sum(sizes) != input_.shape[dim]:
            raise ValueError(
                f"reduce_scatterv got the sizes {list(sizes)}; expected {self.world_size} that add "
                f"up to the {input_.shape[dim]} entries along dimension {dim}"
            )
        if self.world_size == 1:
            return input_
        longest = max(sizes)
        first = input_.movedim(dim, 0)
        padded = first.new_zeros((self.world_size, longest, *first.shape[1:]))
        for row, part in zip(padded, first.split(list(sizes)), strict=True):
            row[: part.shape[0]] = part
        mine = self.reduce_scatter(padded.flatten(0, 1), 0)
        return mine[: sizes[self.rank_in_group]].movedim(0, dim)

    def gather(self, input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor | None:
        """Every process's tensor along `dim`, in process `dst`; None in the others."""
        dim = self._checked(input_, dim, "gather")
        self._check_rank(dst, "gather")
        if self.world_size == 1:
            return input_
        here = self.rank_in_group == dst
        tensor = input_.contiguous()
        parts = [self._torch.empty_like(tensor) for _ in self.ranks] if here else None
        self._dist.gather(tensor, parts, dst=self.ranks[dst], group=self.device_group)
        return None if parts is None else self._torch.cat(parts, dim)

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Process `src`'s values, in place."""
        self._check_rank(src, "broadcast")
        if self.world_size > 1:
            self._dist.broadcast(tensor, self.ranks[src], self.device_group)
        return tensor

    def send(self, tensor: torch.Tensor, dst: int | None = None) -> None:
        """Send to process `dst`, the next one by default; it must receive."""
        dst = (self.rank_in_group + 1) % self.world_size if dst is None else dst
        self._check_other(dst, "send")
        self._dist.send(tensor.contiguous(), self.ranks[dst], self.device_group)

    def recv(self, size: Sequence[int], dtype: torch.dtype, src: int | None = None) -> torch.Tensor:
        """What process `src`, the one before by default, sends: it must have this size and dtype."""
        src = (self.rank_in_group - 1) % self.world_size if src is None else src
        self._check_other(src, "recv")
        tensor = self._torch.empty(tuple(size), dtype=dtype, device=self.device)
        self._dist.recv(tensor, self.ranks[src], self.device_group)
        return tensor

    def barrier(self) -> None:
        """Wait until every process of the group is here."""
        self._dist.barrier(self.cpu_group)

    def destroy(self) -> None:
        """Nothing is kept beside the groups, which belong to whoever made them."""

    def _checked(self, tensor: torch.Tensor, dim: int, what: str) -> int:
        """The dimension counted from the front."""
        if not -tensor.dim() <= dim < tensor.dim():
            raise ValueError(
                f"{what} was asked for along dimension {dim} of a tensor of shape "
                f"{tuple(tensor.shape)}, which has {tensor.dim()} dimensions"
            )
        return dim % tensor.dim()

    def _check_sizes(self, sizes: Sequence[int], own: int, what: str) -> None:
        if len(sizes) != self.world_size or sizes[self.rank_in_group] != own:
            raise ValueError(
                f"{what} got the sizes {list(sizes)}; expected {self.world_size}, of which number "
                f"{self.rank_in_group} is this process's {own}"
            )

    def _check_rank(self, rank: int, what: str) -> None:
        if not 0 <= rank < self.world_size:
            raise ValueError(
                f"{what} was asked for with process {rank}; this group has processes 0 to "
                f"{self.world_size - 1}, counted within the group"
            )

    def _check_other(self, rank: int, what: str) -> None:
        self._check_rank(rank, what)
        if rank == self.rank_in_group:
            raise ValueError(
                f"{what} was asked for with process {rank}, which is this process itself; a group "
                "of one has nobody to talk to, and no process can wait for itself"
            )
