from keras_tlgc.applications.wide_resnet import WideResNet

__all__ = ["WideResNet"]
