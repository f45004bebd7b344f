"""What does a question ask for? Kim's network on TREC's questions, and on film reviews.

    jaxconv train --config=experiments/questions.py --workdir=/tmp/questions \\
        --config.data.source='text:/data/sentences/TREC.{split}.all'
    jaxconv train --config=experiments/questions.py:bytes --workdir=/tmp/questions_bytes \\
        --config.data.source='text:/data/sentences/TREC.{split}.all'
    jaxconv sweep --config=experiments/questions.py:films --workdir=/tmp/films \\
        --grid='data.fold=0:10' --config.data.source=text:/data/sentences/rt-polarity.all
    jaxconv train --config=experiments/questions.py:small --workdir=/tmp/questions_small

The network is CNN-rand of Kim 2014 (arXiv:1408.5882): words through an embedding that begins at
random; filters over 3, 4 and 5 words; the largest value of each over the sentence; dropout; a fully
connected layer. `:bytes` reads the same questions as bytes. `:films` tells good reviews from bad,
by ten-fold cross-validation. The last takes seconds, with toy sentences.

The original files are read too: TREC's (cogcomp.org/Data/QA/QC) with
--config.data.source='text:DIR/{split}.label' --config.data.train_split=train_5500
--config.data.eval_split=TREC_10 --config.data.text.coarse=True, and the reviews' with
--config.data.source='text:DIR/rt-polarity.{class}'.

Data      TREC (Li and Roth 2002): 5,452 questions of 6 classes, 500 to test; film reviews (Pang and
          Lee 2005): 10,662 sentences of 2 classes. Kim's CNN-rand: 91.2% and 76.1%
Machine   2 cores of an AMD EPYC, shared; jax 0.10.2
Time      46 s of the cores' time for the questions, 1 min 44 s as bytes, about 1 min for each fold
          of the reviews; wall time was 4 times as long, because other programs ran
Result    89.1% of 500 questions (seeds 0, 1, 2: 89.4, 88.8, 89.2), 85.4% as bytes (seed 0);
          reviews: 77.2%, the mean of ten folds (standard deviation 1.0)
"""

from jaxconv.config import check_argument, default_config

KIM = (
    "text:embed{0} dropout0.2 {{conv3-100p2 relu globalmaxpool | conv4-100p3 relu globalmaxpool | "
    "conv5-100p4 relu globalmaxpool}} dropout0.5 fc"
)


def get_config(argument=""):
    check_argument(argument, "bytes", "films", "small")
    config = default_config()
    config.data.source = "text:sentences/TREC.{split}.all"
    config.data.text.length = 37  # words of the longest question
    config.data.text.words = 30_000  # more than there are
    config.model.name = KIM.format(300)
    if argument == "bytes":
        config.data.text.words, config.data.text.length = 0, 128
        config.model.name = (
            "text:embed48 dropout0.1 {conv3-128p1 relu globalmaxpool | conv5-256p2 relu "
            "globalmaxpool | conv8-256p4 relu globalmaxpool} dropout0.5 fc"
        )
    config.batch_size = 50
    config.epochs = 12.0 if argument == "bytes" else 10.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.002
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup_steps = 50
    config.eval.every = 109
    if argument == "films":
        config.data.source = "text:sentences/rt-polarity.all"
        config.data.train_split, config.data.eval_split = "train[!fold]", "train[fold]"
        config.data.text.length = 50
        config.epochs = 3.0
        config.eval.every = 192
    if argument == "small":
        config.data.source = "sentences"
        config.data.toy.train_examples, config.data.toy.test_examples = 24, 12
        config.model.name = KIM.format(8).replace("-100", "-4")
        config.batch_size, config.eval.batch_size, config.eval.every = 4, 6, 2
        config.log.every, config.checkpoint.every = 1, 4
        config.epochs, config.steps, config.optimizer.schedule.warmup_steps = 0.0, 4, 2
    return config
