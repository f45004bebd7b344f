#!/usr/bin/env bash
# Make the figures of README.md and docs/gallery.md again, with jaxconv's own commands on real runs.
#
#   docs/pictures.sh --photographs=DIR --camvid=DIR --weights=DIR --scans=DIR --cells=DIR --pedestrians=DIR
#
# --photographs=DIR  CIFAR-10 as an image folder, DIR/train/<class>/ and DIR/test/<class>/
# --camvid=DIR       CamVid with masks, see experiments/camvid.py
# --weights=DIR      EfficientNet-Lite0, from jaxconv convert
# --scans=DIR        the hippocampus in MRI, see experiments/hippocampus.py
# --cells=DIR        blood cells with boxes, see experiments/bccd.py
# --pedestrians=DIR  pedestrians with masks, see experiments/pennfudan.py
# --runs=DIR         where the runs are, or are trained if missing (docs/runs): X's and O's in 15 seconds, scenes of them in a
#                    minute each, sentences in 30 seconds, CIFAR-10 in six minutes, CamVid, the hippocampus, cells and pedestrians in
#                    half an hour each, a tenth of ResNet-20's recipe in an hour
# --out=DIR          where to write the figures (docs)
#
# Needs jaxconv with the extras playground and test, and Debian's chromium and chromium-driver for screenshots.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
photographs="" camvid_data="" weights="" scans="" cells="" pedestrians="" runs=$root/docs/runs out=$root/docs
for argument in "$@"; do
  case $argument in
    --photographs=*) photographs=${argument#*=} ;;
    --camvid=*) camvid_data=${argument#*=} ;;
    --weights=*) weights=${argument#*=} ;;
    --scans=*) scans=${argument#*=} ;;
    --cells=*) cells=${argument#*=} ;;
    --pedestrians=*) pedestrians=${argument#*=} ;;
    --runs=*) runs=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    *) sed -n '2,17s/^# \{0,1\}//p' "$0" && exit 2 ;;
  esac
done
xo=$runs/xo cifar=$runs/cifar texts=$runs/sentences resnet20=$runs/resnet20 fast=$runs/cifar10_fast
masks=$runs/xo_segmentation boxes=$runs/xo_localization objects=$runs/xo_detection camvid=$runs/camvid hippocampus=$runs/hippocampus
letters=$runs/xo_masks bccd=$runs/bccd pennfudan=$runs/pennfudan

look() { # NAME PICTURE OPTION ...
  jaxconv look "$2" "${@:3}" --out="$out/$1.png"
}

screenshot() { # NAME ADDRESS WIDTH HEIGHT
  chromium --headless --no-sandbox --hide-scrollbars --window-size="$3,$4" --virtual-time-budget=10000 --screenshot="$out/$1.png" "$2"
}

needs() { # OPTION VALUE
  [ -n "$2" ] || { echo "--$1=DIR is missing" >&2 && exit 2; }
}

play() { # NAME WORKDIR
  # The playground picks a free port and prints its address once it answers; if it does not start, nothing is read.
  exec 3< <(exec jaxconv playground --workdir="$2" --port=0)
  playground=$!
  trap 'kill "$playground"' EXIT
  read -r address _ <&3 || { echo "the playground did not start" >&2 && exit 1; }
  python "$root/docs/playground.py" "$address" "$out/$1.png"
  kill "$playground"
  trap - EXIT
}

mkdir -p "$out"
if [ ! -e "$xo/curves.png" ]; then
  jaxconv train --config="$root/experiments/xo.py" --workdir="$xo"
fi
if [ ! -e "$cifar/curves.png" ]; then
  needs photographs "$photographs"
  jaxconv train --config="$root/experiments/cifar10_quick.py" --config.data.source="folder:$photographs" --workdir="$cifar"
fi
if [ ! -e "$resnet20/curves.png" ]; then
  needs photographs "$photographs"
  jaxconv train --config="$root/experiments/cifar10_resnet20.py" --config.data.source="folder:$photographs" --workdir="$resnet20" \
    --config.steps=6400 --config.optimizer.schedule.boundaries=3200,4800
fi
if [ ! -e "$fast/curves.png" ]; then
  needs photographs "$photographs"
  jaxconv train --config="$root/experiments/cifar10_fast.py" --config.data.source="folder:$photographs" --workdir="$fast" --config.log.every=5
fi
if [ ! -e "$texts/curves.png" ]; then
  jaxconv train --config="$root/experiments/sentences.py" --workdir="$texts"
fi
for run in "$masks" "$boxes" "$objects"; do
  if [ ! -e "$run/curves.png" ]; then
    jaxconv train --config="$root/experiments/$(basename "$run").py" --workdir="$run"
  fi
done
if [ ! -e "$letters/curves.png" ]; then
  jaxconv train --config="$root/experiments/xo_detection.py:masks" --workdir="$letters"
fi
if [ ! -e "$camvid/curves.png" ]; then
  needs camvid "$camvid_data"
  needs weights "$weights"
  jaxconv train --config="$root/experiments/camvid.py" --config.data.source="masks:$camvid_data" --config.model.init_from="$weights" \
    --workdir="$camvid"
fi
if [ ! -e "$hippocampus/curves.png" ]; then
  needs scans "$scans"
  jaxconv train --config="$root/experiments/hippocampus.py" --config.data.source="nifti:$scans" --workdir="$hippocampus"
fi
if [ ! -e "$bccd/curves.png" ]; then
  needs cells "$cells"
  needs weights "$weights"
  jaxconv train --config="$root/experiments/bccd.py" --config.data.source="coco:$cells" --config.model.init_from="$weights" --workdir="$bccd"
fi
if [ ! -e "$pennfudan/curves.png" ]; then
  needs pedestrians "$pedestrians"
  needs weights "$weights"
  jaxconv train --config="$root/experiments/pennfudan.py" --config.data.source="coco:$pedestrians" --config.model.init_from="$weights" \
    --workdir="$pennfudan"
fi
cp "$xo/curves.png" "$out/xo.png"
cp "$cifar/curves.png" "$out/cifar10_quick.png"
cp "$resnet20/curves.png" "$out/cifar10_resnet20.png"
cp "$fast/curves.png" "$out/cifar10_fast.png"

look lecture lecture
look xo_walk walk --workdir="$xo"
look cifar_predictions predictions --workdir="$cifar"
look cifar_mistakes mistakes --workdir="$cifar"
look cifar_confusions confusions --workdir="$cifar"
look cifar_filters filters --workdir="$cifar"
look cifar_activations activations --workdir="$cifar" --example=7
look cifar_attribution attribution --workdir="$cifar" --example=7 --layer=conv4_1
look letters attribution --workdir="$texts" --example=3
look cifar_patches patches --workdir="$cifar" --layer=conv3_1
look winners winners
look story story --model=alexnet_2012 --model=zfnet --model=vgg16 --model=googlenet --model=resnet18 \
  --model=resnet50 --model=resnet152 --model=densenet121 --model=mobilenet_v2 --model=convnext_tiny
jaxconv evaluate --workdir="$cifar" --reliability="$out/cifar_reliability.png"
jaxconv report --workdir="$cifar"
screenshot report "file://$(cd "$cifar" && pwd)/report.html" 1200 1500

look xo_masks predictions --workdir="$masks" --number=8
look xo_boxes predictions --workdir="$boxes" --number=8
look xo_detection predictions --workdir="$objects" --number=8
look camvid predictions --workdir="$camvid" --number=4
look camvid_classes classes --workdir="$camvid"
look hippocampus predictions --workdir="$hippocampus" --number=4
look bccd predictions --workdir="$bccd" --number=4
look bccd_mistakes mistakes --workdir="$bccd"
look pennfudan predictions --workdir="$pennfudan" --number=4

play playground "$xo"
play playground_masks "$masks"
play playground_boxes "$boxes"
play playground_objects "$letters"
