"""A callback that sends a run's numbers to MLflow, on X's and O's.

    pip install mlflow
    jaxconv train --config=experiments/mlflow_logger.py --workdir=/tmp/mlflow_xo
    jaxconv train --config=experiments/mlflow_logger.py:small --workdir=/tmp/mlflow_small

With any other experiment: --config.callbacks=experiments/mlflow_logger.py:Mlflow

A resumed run continues the same MLflow run. MLFLOW_TRACKING_URI names the server or a database
(without it: mlflow.db in the workdir), MLFLOW_EXPERIMENT_NAME the experiment.

Result    that of experiments/xo.py
"""

import os

from jaxconv.config import check_argument, default_config, flatten, small


class Mlflow:
    """Sends the rows of metrics.jsonl; see jaxconv/train/callbacks.py for the methods."""

    def on_start(self, run):
        import mlflow
        from mlflow.tracking import MlflowClient

        place = None if mlflow.is_tracking_uri_set() else f"sqlite:///{run.workdir}/mlflow.db"
        self.client = MlflowClient(place)
        # The workdir keeps the id, so that a resumed run is the same run there.
        path = run.workdir / "mlflow_id.txt"
        if path.is_file():
            self.id = path.read_text().strip()
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxconv")
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=run.workdir.name).info.run_id
        for key, value in flatten(run.config).items():
            self.client.log_param(self.id, key, value)
        path.write_text(self.id)

    def on_log(self, run, metrics):
        for name, value in metrics.items():
            self.client.log_metric(self.id, name, value, step=run.step)

    on_evaluation = on_log

    def on_end(self, run, result):
        for name, value in result.items():
            if isinstance(value, float):
                self.client.log_metric(self.id, f"end/{name}", value, step=run.step)
        self.client.set_terminated(self.id)


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.callbacks = f"{__file__}:Mlflow"
    config.epochs, config.optimizer.schedule.name = 5.0, "cosine"
    return small(config, channels=1, filters=(4, 8)) if argument == "small" else config
