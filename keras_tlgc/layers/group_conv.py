import keras

from keras_tlgc.layers.base_group_conv import BaseGroupConv


@keras.saving.register_keras_serializable(package="keras_tlgc")
class GroupConv1D(BaseGroupConv):
    """1D grouped convolution that trains fast on every backend.

    This is the 1D form of `GroupConv2D`: it is `keras.layers.Conv1D(groups=N)`,
    computed in another way. It also allows `padding="causal"`.

    It takes the arguments of `keras.layers.Conv1D`, in their order, and by name
    `lowering`: see `GroupConv2D`.

    Input shape:
        `(batch, steps, m)` or, with `data_format="channels_first"`,
        `(batch, m, steps)`.

    Output shape:
        `(batch, new_steps, filters)` or `(batch, filters, new_steps)`.

    Example:

    >>> x = np.random.rand(4, 10, 32)
    >>> y = keras_tlgc.layers.GroupConv1D(64, 3, groups=4)(x)
    >>> y.shape
    (4, 8, 64)
    """

    rank = 1


@keras.saving.register_keras_serializable(package="keras_tlgc")
class GroupConv2D(BaseGroupConv):
    """2D grouped convolution that trains fast on every backend.

    It is the one-level block-Jacobi approximation of a convolution (Lee, Park,
    Lee, "Two-level Group Convolution", eq. 2.9). Let `x_i` be the i-th of
    `groups` blocks of input channels and `y_i` the i-th block of output
    channels; then `y_i = G_i x_i`. The layer has `k*k * m * filters / groups`
    kernel parameters, for a `k` by `k` kernel and m input channels.

    It computes what `keras.layers.Conv2D(groups=groups)` computes and takes its
    weights (`set_weights(conv.get_weights())`), but it also trains fast where
    the framework's own grouped convolution is slow.

    A NaN or an infinity in one group stays there, as in
    `keras.layers.Conv2D`, unless several groups are computed as one. This
    happens on CPUs with JAX and TensorFlow if a group has fewer than 16 input
    channels or there are more than 16 groups (except for 1x1 kernels on JAX).
    With `lowering="native"`, NaNs and infinities in the outputs and in the
    input's gradient are where `keras.layers.Conv2D` has them. See
    `keras_tlgc.ops.grouped_conv`.

    Args:
        filters: int, the number n of output channels.
        kernel_size: int or tuple of 2 integers.
        strides: int or tuple of 2 integers. Strides above 1 cannot be combined
            with a dilation rate above 1.
        padding: `"valid"` or `"same"`, as in `keras.layers.Conv2D`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.
        dilation_rate: int or tuple of 2 integers.
        groups: int, the number N of groups. It must divide `filters` and the
            input's channels.
        activation: activation function or its name. `None` applies none.
        use_bias: bool, whether to add a bias vector.
        kernel_initializer: initializer of the kernel.
        bias_initializer: initializer of the bias.
        kernel_regularizer: optional regularizer of the kernel.
        bias_regularizer: optional regularizer of the bias.
        activity_regularizer: optional regularizer of the output.
        kernel_constraint: optional constraint on the kernel.
        bias_constraint: optional constraint on the bias.
        lowering: how it is computed: `"auto"`, `"native"`, `"slices"`,
            `"taps"`, `"dense"` or, for 1x1 kernels, `"matmul"`. See
            `keras_tlgc.ops.grouped_conv`.
        lora_rank: optional int. If set, `enable_lora(lora_rank, lora_alpha)` is
            called once the layer has weights.
        lora_alpha: optional number, which scales what LoRA adds: see
            `enable_lora`.
        **kwargs: `name`, `dtype`, `trainable`: see `keras.layers.Layer`.

    Input shape:
        `(batch, height, width, m)` or, with `data_format="channels_first"`,
        `(batch, m, height, width)`. Batch and spatial sizes may be unknown.

    Output shape:
        `(batch, new_height, new_width, filters)` or
        `(batch, filters, new_height, new_width)`.

    Raises:
        ValueError: if an argument is out of its range, if `groups` does not
            divide the filters or the input's channels, or if the window does
            not fit into the input.

    Example:

    >>> x = np.random.rand(4, 10, 10, 128)
    >>> y = keras_tlgc.layers.GroupConv2D(32, 3, groups=4)(x)
    >>> y.shape
    (4, 8, 8, 32)
    """

    rank = 2


@keras.saving.register_keras_serializable(package="keras_tlgc")
class GroupConv3D(BaseGroupConv):
    """3D grouped convolution that trains fast on every backend.

    This is the 3D form of `GroupConv2D`: it is `keras.layers.Conv3D(groups=N)`,
    computed in another way.

    It takes the arguments of `keras.layers.Conv3D`, in their order, and by name
    `lowering`: see `GroupConv2D`.

    Input shape:
        `(batch, depth, height, width, m)` or, with
        `data_format="channels_first"`, `(batch, m, depth, height, width)`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)` or
        `(batch, filters, new_depth, new_height, new_width)`.

    Example:

    >>> x = np.random.rand(4, 6, 6, 6, 32)
    >>> y = keras_tlgc.layers.GroupConv3D(64, 3, groups=4)(x)
    >>> y.shape
    (4, 4, 4, 4, 64)
    """

    rank = 3
