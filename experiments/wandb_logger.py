"""A callback that sends a run's numbers to Weights & Biases, on X's and O's.

    pip install wandb
    jaxconv train --config=experiments/wandb_logger.py --workdir=/tmp/wandb_xo
    jaxconv train --config=experiments/wandb_logger.py:small --workdir=/tmp/wandb_small

With any other experiment: --config.callbacks=experiments/wandb_logger.py:Wandb

A resumed run continues the same W&B run; WANDB_PROJECT and W&B's other variables set the rest.

Result    that of experiments/xo.py
"""

from jaxconv.config import check_argument, default_config, small


class Wandb:
    """Sends the rows of metrics.jsonl; see jaxconv/train/callbacks.py for the methods."""

    def on_start(self, run):
        import wandb

        # The workdir keeps the id, so that a resumed run is the same run there.
        path = run.workdir / "wandb_id.txt"
        known = path.read_text().strip() if path.is_file() else None
        self.logger = wandb.init(
            id=known,
            resume="allow",
            dir=str(run.workdir),
            name=run.workdir.name,
            config=run.config.to_dict(),
        )
        path.write_text(self.logger.id)
        # Against our step: a resumed run may send a step again.
        self.logger.define_metric("*", step_metric="step")

    def on_log(self, run, metrics):
        self.logger.log({"step": run.step, **metrics})

    def on_evaluation(self, run, metrics):
        self.logger.log({"step": run.step, **metrics})

    def on_end(self, run, result):
        self.logger.summary.update(result)
        self.logger.finish()


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.callbacks = f"{__file__}:Wandb"
    config.epochs, config.optimizer.schedule.name = 5.0, "cosine"
    return small(config, channels=1, filters=(4, 8)) if argument == "small" else config
