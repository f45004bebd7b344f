"""Detection: pure functions on boxes, for the detectors and for other JAX code.

    boxes      areas, overlaps, clipping, codes of boxes relative to anchors
    anchors    the boxes that a detector starts from, at every position of its maps
    matching   which box of the truth an anchor is to find; samples of anchors
    nms        non-maximum suppression
    losses     of classes and of boxes
    masks      masks of instances, from the size of the head to that of the image; on the host
    instances  masks and keypoints of instances; on the device

Boxes are float32 (top, left, bottom, right) in pixels. All is for one image, with static shapes;
`jax.vmap` makes it a batch. Sets of boxes are padded, and `valid` says which count.

On the host, of whole sets, in numpy:

    matches    which detection is which object, as COCO and VOC say
    precision  their curves of precision, and the figures made of these
    mistakes   what kinds of mistakes there are, and what they cost; confusions of classes
    fusion     one set of detections from those of several networks
"""
