#!/usr/bin/env bash
# What `make train` does: data, training with the fast recipe, evaluation, pictures.
# Usage: quickstart.sh DATA SCALE OUTPUTS      (environment: PYTHON, the interpreter)
set -euo pipefail
. "$(dirname -- "$0")/test/common.sh" # run, which ends with make what is in work
[ $# = 3 ] || fail 2 "expected DATA SCALE OUTPUTS; \`make train\` calls it so"
data=$1 scale=$2 outputs=$3
python=${PYTHON:-python3}
DEFAULT=dataset # the Makefile's; another folder was named by somebody
NO_NETWORK=3    # exit status of prepare.py

end() { # STATUS COMMAND…, which goes on after an interruption
  case $1 in 129 | 130 | 143) echo "to go on (make train would start anew): ${*:2}" >&2 ;; esac
  exit "$1"
}
has() { compgen -G "$data/$1.h5" >/dev/null; }

if has "train/*_x$scale" && has "val/*_x$scale"; then
  echo "using $data as it is"
elif has '*/*' && [ ! -d "$data/images" ]; then # which --download makes
  fail 2 "$data has files of its own, and not both of x$scale; make these of the same images:\
 prepare.py --data-path $data --scale $scale --train-images FOLDER --eval-images FOLDER"
else
  status=0
  run "$python" prepare.py --data-path "$data" --scale "$scale" --download || status=$?
  if [ "$status" = "$NO_NETWORK" ]; then
    [ "$data" = "$DEFAULT" ] ||
      fail 1 "$data has no files of x$scale, and T91 and Set5 cannot be fetched; without DATA,\
 make train takes scikit-image's photographs"
    data=dataset-sample
    echo "T91 and Set5 cannot be fetched: taking scikit-image's photographs, in $data, instead"
    run "$python" prepare.py --data-path "$data" --scale "$scale" --sample
  elif [ "$status" != 0 ]; then
    exit "$status"
  fi
fi

results=$outputs/x$scale
pictures=$data/images/Test/Set5
if [ -d "$pictures" ]; then
  set -- --images-dir "$pictures" --protocol paper
else
  set -- --data-path "$data"
fi
training=("$python" train.py --data_url "$data" --scale "$scale" --recipe fast --outputs-dir "$outputs")
evaluation=("$python" evaluate.py --weights "$results/best.pth" --scale "$scale" "$@"
  --report "$results/report" --training-log "$results/metrics.csv")
run "${training[@]}" || end $? "${training[@]@Q}" --resume "&&" "${evaluation[@]@Q}"
[[ $1 != --images-dir ]] || echo "the same weights by the protocol of the papers:"
run "${evaluation[@]}" || end $? "${evaluation[@]@Q}"
echo "open $results/report/index.html in a browser to compare the pictures"
