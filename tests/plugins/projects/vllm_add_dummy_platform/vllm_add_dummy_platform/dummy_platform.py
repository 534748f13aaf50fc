"""The platform class, derived from the base that vLLM's documents name."""

from vllm import envs
from vllm.logger import init_logger
from vllm.platforms.interface import Platform, PlatformEnum

logger = init_logger(__name__)


class DummyPlatform(Platform):
    """A device that is the CPU under another name."""

    _enum = PlatformEnum.OOT
    device_name = "DummyDevice"
    device_type: str = "privateuseone"
    dispatch_key: str = "PrivateUse1"
    workers = envs.VLLM_WORKER_MULTIPROC_METHOD

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """Name the device."""
        return f"{cls.device_name}:{device_id}"
