"""LeNet-5 on MNIST (LeCun, Bottou, Bengio and Haffner 1998, Proceedings of the IEEE 86(11)).

    jaxconv train --config=experiments/mnist_lenet5.py --workdir=/tmp/lenet5
    jaxconv train --config=experiments/mnist_lenet5.py:small --workdir=/tmp/lenet5_small

The second takes seconds on a CPU. --config.data.source=arrays:DIR reads the four idx files in DIR.

The paper   20 epochs of 60,000 digits in 32x32 pixels, background -0.1 and ink 1.175, so that mean
            and variance are about 0 and 1; stochastic diagonal Levenberg-Marquardt with learning
            rates of 5e-4 (two epochs), 2e-4 (three), 1e-4 (three), 5e-5 (four), 1e-5; radial basis
            functions as the output layer; some connections between maps left out
Here        the 32x32 pixels are the digits' 28x28 and two pixels of padding in the first
            convolution, and the padding is the mean, not the background; tanh without the paper's
            scale; average pooling without weights; full connections, softmax, SGD with momentum,
            cosine schedule
Error       0.95% on the 10,000 test digits, trained without distortions (section III-B); 0.8% with
Machine     2 cores of an AMD EPYC, jax 0.10.2
Time        3 min from start to finish
Result      0.83% of the 10,000 test digits are wrong on average: 0.80, 0.77, 0.93% (seeds 0, 1, 2)
"""

from jaxconv.config import check_argument, default_config, small


def get_config(argument=""):
    check_argument(argument, "small")
    config = default_config()
    config.data.source = "tfds:mnist"
    config.data.mean = (0.1307,)
    config.data.std = (0.3081,)
    config.model.name = "lenet5"
    config.model.kwargs = {
        "text": "conv5-6p2 tanh avgpool2 conv5-16p0 tanh avgpool2 conv5-120p0 tanh fc84 tanh fc"
    }
    config.epochs = 20.0
    config.batch_size = 64
    config.optimizer.learning_rate = 0.02
    config.optimizer.l2 = 1e-4
    config.optimizer.schedule.name = "cosine"
    return small(config, image_size=28, channels=1) if argument == "small" else config
