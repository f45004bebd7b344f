from jaxconv.config import default_config


def get_config():
    config = default_config()
    config.data.source = "folder:cifar10"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 2
    config.augment.flip = True
    config.model.name = "chain"
    config.model.kwargs = {"filters": (16, 64, 128, 256), "batch_norm": True, "global_pool": True}
    config.epochs = 5.0
    config.batch_size = 128
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.2
    config.optimizer.nesterov = True
    config.optimizer.l2 = 5e-4
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 300
    return config
