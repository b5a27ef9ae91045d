"""Networks of other packages, small, made without a download."""

import keras

SHAPE = (64, 64, 3)


def application(name):
    return lambda: getattr(keras.applications, name)(
        weights=None, input_shape=SHAPE, classes=4, classifier_activation=None
    )


def hub_resnet_classifier():
    import keras_hub

    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=SHAPE,
    )
    return keras_hub.models.ResNetImageClassifier(
        backbone=backbone, num_classes=4
    )


def hub_mobilenet():
    import keras_hub

    return keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144], [72]],
        stackwise_num_blocks=[2, 2, 1],
        stackwise_num_filters=[[16, 16], [24, 24], [24]],
        stackwise_kernel_size=[[3, 3], [5, 5], [5]],
        stackwise_num_strides=[[2, 1], [2, 1], [1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25], [0.25]],
        stackwise_activation=[["relu"] * 2, ["hard_swish"] * 2, ["relu"]],
        stackwise_padding=[[1, 1], [2, 2], [2]],
        output_num_filters=64,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        image_shape=SHAPE,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=64,
    )


def hub_retinanet():
    """A backbone whose encoder has a level that no output needs."""
    import keras_hub

    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        image_shape=SHAPE,
    )
    return keras_hub.models.RetinaNetBackbone(
        encoder, min_level=2, max_level=3, use_p5=False, image_shape=SHAPE
    )


def cv_csp_darknet():
    import keras_cv

    return keras_cv.models.CSPDarkNetBackbone(
        stackwise_channels=[48, 96],
        stackwise_depth=[1, 3],
        include_rescaling=False,
        use_depthwise=False,
        input_shape=SHAPE,
    )


def cv_efficientnet_v2():
    import keras_cv

    return keras_cv.models.EfficientNetV2Backbone(
        stackwise_kernel_sizes=[3, 3, 3],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[32, 16, 32],
        stackwise_output_filters=[16, 32, 48],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_strides=[1, 2, 2],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.0, 0.25],
        stackwise_conv_types=["fused", "fused", "unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        include_rescaling=False,
        input_shape=SHAPE,
    )


# Name: what makes the network, how many convolutions it has, and how many of
# these are converted.
PEERS = {
    "MobileNetV2": (application("MobileNetV2"), 52, 34),
    "ResNet50V2": (application("ResNet50V2"), 53, 52),
    "EfficientNetV2B0": (application("EfficientNetV2B0"), 91, 74),
    "DenseNet121": (application("DenseNet121"), 120, 119),
    "hub_resnet_classifier": (hub_resnet_classifier, 10, 9),
    "hub_mobilenet": (hub_mobilenet, 27, 20),
    "hub_retinanet": (hub_retinanet, 13, 9),
    "cv_csp_darknet": (cv_csp_darknet, 19, 19),
    "cv_efficientnet_v2": (cv_efficientnet_v2, 24, 14),
}
