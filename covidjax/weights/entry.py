"""One line of a name map."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one array of a network comes from.

    path: ours, from 'params' or 'batch_stats' down. source: the name of the tensor in the file.
    layout: how the tensor becomes the array:
    'same'; 'conv_oihw' [out, in, height, width] to [height, width, in, out]; 'dense_oi' [out, in] to [in, out];
    'dense_from_chw:C,H,W' [out, C * H * W] to [H * W * C, out]; 'conv_as_dense' [out, in, height, width], a convolution
    that covers the whole map, to [height * width * in, out].
    """

    path: str
    source: str
    layout: str = "same"
