"""Published parameter and multiply-add counts, independent of this code."""

# torchvision 0.28, each network built with random weights and counted; GoogLeNet with its auxiliary
# classifiers.
TORCHVISION = {
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "convnext_small": 50_223_688,
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "regnet_x_16gf": 54_278_536,
    "regnet_x_1_6gf": 9_190_136,
    "regnet_x_32gf": 107_811_560,
    "regnet_x_3_2gf": 15_296_552,
    "regnet_x_400mf": 5_495_976,
    "regnet_x_800mf": 7_259_656,
    "regnet_x_8gf": 39_572_648,
    "regnet_y_128gf": 644_812_894,
    "regnet_y_16gf": 83_590_140,
    "regnet_y_1_6gf": 11_202_430,
    "regnet_y_32gf": 145_046_770,
    "regnet_y_3_2gf": 19_436_338,
    "regnet_y_400mf": 4_344_144,
    "regnet_y_800mf": 6_432_512,
    "regnet_y_8gf": 39_381_472,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnext50_32x4d": 25_028_904,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "wide_resnet101_2": 126_886_696,
    "wide_resnet50_2": 68_883_240,
    "alexnet_torchvision": 61_100_840,
    "googlenet_torchvision": 13_004_888,
}

# Worked out by hand from the papers' tables. The lecture's VGG counts leave out the biases.
BY_HAND = {
    "lenet5": 61_706,
    "alexnet": 62_378_344,
    "alexnet_2012": 60_965_224,
    "zfnet": 107_627_624,
    "zfnet_base": 62_357_608,
    "vgg11_lrn": 132_863_336,
    "vgg16_conv1": 133_638_952,
    # ResNet-101's convolutions; 3x3 to 512 and 1x1 to 9 and to 36; 2048 to 81 and to 324.
    "faster_rcnn_c4_resnet101": 42_394_816 + 4_719_104 + 4_617 + 18_468 + 165_969 + 663_876,
    **{f"resnet{d}_v1": TORCHVISION[f"resnet{d}"] for d in (18, 34, 50, 101, 152)},
}

# In millions, as the papers print them: He et al. 2015, Table 6; Springenberg et al. 2014, Table 2;
# Howard et al. 2017, Table 8; Hu et al. 2018, Table 2 (SE-ResNet-50: 2.5 M more than ResNet-50's
# 25.6).
PRINTED = {
    "resnet20_cifar": 0.27,
    "resnet32_cifar": 0.46,
    "resnet44_cifar": 0.66,
    "resnet56_cifar": 0.85,
    "resnet110_cifar": 1.7,
    "all_cnn_c": 1.4,
    "mobilenet_v1": 4.2,
    "se_resnet50": 28.1,
    "efficientnet_lite1": 5.4,
    "efficientnet_lite2": 6.1,
    "efficientnet_lite3": 8.2,
    "efficientnet_lite4": 13.0,
}

# Billions of multiply-adds of a forward pass, at the published input size.
GMACS = {
    "alexnet_torchvision": 0.7142,
    "convnext_tiny": 4.4555,
    "densenet121": 2.8342,
    "efficientnet_b0": 0.3858,
    "mobilenet_v2": 0.3008,
    "resnet50": 4.0892,
    "resnext50_32x4d": 4.2305,
    "vgg11": 7.6091,
}
