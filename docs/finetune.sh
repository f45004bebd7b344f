#!/usr/bin/env bash
# What weights of ImageNet give on a tenth of CIFAR-10: neighbours, a linear probe, fine-tuning with
# BatchNorm frozen and tracked, and the same steps from nothing.
#   docs/finetune.sh SET WEIGHTS OUT
# SET has train/<class> with every tenth image, and test/<class>; WEIGHTS are those of
# `jaxconv convert` for efficientnet_lite0.
set -euo pipefail
set="folder:$1" weights="$2" out="$3"
common=(--model=efficientnet_lite0 --config.data.image_size=96 --config.data.crop_ratio=1.0
  --config.data.mean=0.498 --config.data.std=0.502)
steps="${STEPS:-60}"
short=("${common[@]}" --config.steps="$steps" --config.eval.every="$steps" --config.log.report=False)

jaxconv neighbours "$set" --pretrained="$weights" "${common[@]}"
jaxconv finetune "$set" --pretrained="$weights" "${short[@]}" --probe=linear --workdir="$out/probe"
jaxconv finetune "$set" --pretrained="$weights" "${short[@]}" --norm=frozen --workdir="$out/frozen"
jaxconv finetune "$set" --pretrained="$weights" "${short[@]}" --workdir="$out/tracked"
jaxconv finetune "$set" --pretrained="$weights" "${short[@]}" --workdir="$out/nothing" \
  --config.model.init_from= --config.optimizer.groups.body.learning_rate=1
