from jaxconv.config import default_config


def get_config():
    config = default_config()
    config.data.source = "xo"
    config.model.name = "chain"
    config.model.kwargs = {"filters": (8, 16, 32), "neurons": (32,)}
    config.epochs = 3.0
    config.batch_size = 50
    config.optimizer.learning_rate = 0.02
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 50
    return config
