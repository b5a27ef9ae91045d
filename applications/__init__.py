from keras_tlgc.applications.mobilenet_v2 import MobileNetV2
from keras_tlgc.applications.registry import network_builder
from keras_tlgc.applications.wide_resnet import (
    WideResNet,
    WideResNet28x10,
    WideResNet34x2,
    WideResNetImageNet,
)

__all__ = [
    "MobileNetV2",
    "WideResNet",
    "WideResNet28x10",
    "WideResNet34x2",
    "WideResNetImageNet",
    "network_builder",
]
