"""A map of the ground from one calibrated camera: data, network, training, prediction.

Public names load on first use, so that geometry and data need neither torch nor transformers.
"""

from typing import Any

from featherweight.lazy_names import load_name

_PLACES = {
    "BEVGridConfig": "featherweight.bev.grid",
    "BEVConfusion": "featherweight.bev.metrics",
    "BEVConfig": "featherweight.bev.options",
    "BEVTask": "featherweight.bev.task",
    "FocusBEVConfig": "featherweight.bev.model.configuration_focusbev",
    "FocusBEVForSegmentation": "featherweight.bev.model.modeling_focusbev",
    "FocusBEVImageProcessor": "featherweight.bev.image_processing_focusbev",
    "NuScenesIndex": "featherweight.bev.data.nuscenes",
    "StreamingSegmenter": "featherweight.bev.streaming",
    "WorldConfig": "featherweight.bev.synthetic.rig",
    "integrate_odometry": "featherweight.bev.geometry",
    "make_labels": "featherweight.bev.labels",
    "segment": "featherweight.bev.prediction",
    "write_world": "featherweight.bev.synthetic.world",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    return load_name(__name__, _PLACES, name)


def __dir__() -> list[str]:
    return list(__all__)
