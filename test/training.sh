#!/usr/bin/env bash
# A training from the command line to its figures; the train_*.sh scripts source this file.

# shellcheck source=/dev/null
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<EOF
usage: bash test/${0##*/} --data_path=FOLDER [options] [-- options of train.py]

$SUMMARY

  --data_path=FOLDER    the dataset folder that prepare.py filled (train/, val/)
  --output_path=FOLDER  checkpoints, metrics, pictures (default: test/output/CARD/ckpt)
  --train_epochs=N      epochs (default: $train_epochs)
  --train_steps=N       stop after N optimizer steps in all; 0: no limit (default)
  --batch_size=N        patches in a batch, per card (default: $batch_size)
EOF
    [[ -z $distributed ]] || cat <<EOF
  --nproc=N             processes on this machine, one per card (default: MA_NUM_GPUS, or 8)
                        where RANK_SIZE is set, that over the machines in place of 8
EOF
    cat <<EOF
  --help                this text

Everything after -- goes to train.py and wins over the above, e.g. -- --lr 2e-4 --resume
Logs and figures: test/output/CARD/ of the repository, CARD being ASCEND_DEVICE_ID (default 0), or
logs/CARD/ of the output path where the repository is read-only.
EOF
    [[ -z $distributed ]] || cat <<EOF
Several machines: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (default 29500) as for torchrun, or
ModelArts' MA_NUM_HOSTS, VC_TASK_INDEX, VC_WORKER_HOSTS. Where the platform starts this script once
per card (RANK_ID, RANK_SIZE, and RANK_TABLE_FILE or the first machine's address; or torchrun's RANK,
LOCAL_RANK and so on), each start is one process of the training.
EOF
}

# train.py's own options. A resumed training goes on in the folder, log and all; what only tells
# something leaves it alone.
read_extra() {
    local word
    extra=("$@")
    for word; do
        case $word in
        --resume | --resume=*) resume=yes ;;
        --check | --help | -h) trains='' ;;
        esac
    done
}

parse_options() {
    local files
    while (($#)); do
        case $1 in
        --data_path=*) data_path=${1#*=} ;;
        --output_path=*) output_path=${1#*=} && absolute output_path ;;
        --train_epochs=*) train_epochs=${1#*=} && require_number --train_epochs "$train_epochs" 1 ;;
        --train_steps=*) train_steps=${1#*=} && require_number --train_steps "$train_steps" 0 ;;
        --batch_size=*) batch_size=${1#*=} && require_number --batch_size "$batch_size" 1 ;;
        --nproc=*)
            [[ -n $distributed ]] || fail 2 "this script trains on one card; --nproc is for the 8p scripts"
            cards=${1#*=} && require_number --nproc "$cards" 1
            ;;
        --help | -h) usage && exit 0 ;;
        --) read_extra "${@:2}" && break ;;
        *) fail 2 "unknown option $1; --help lists the options (as --name=value)" ;;
        esac
        shift
    done
    [[ -n $data_path ]] || fail 2 "--data_path=FOLDER is missing: the folder that prepare.py filled"
    absolute data_path
    [[ -d $data_path ]] || fail 2 "no folder $data_path; prepare.py --data-path makes it"
    for folder in "$data_path" "$data_path/train"; do
        [[ ! -d $folder || (-r $folder && -x $folder) ]] ||
            fail 2 "cannot read $folder: Permission denied"
    done
    files=("$data_path"/train/*.h5)
    [[ -e ${files[0]} ]] || fail 2 "no train/*.h5 in $data_path; prepare.py --data-path fills it"
}

# Whether torchrun started this script, once per card, as ModelArts has it do (MA_RUN_METHOD=torchrun).
by_torchrun() {
    [[ -n ${RANK:-} && -n ${MASTER_ADDR:-} && -z ${NNODES:-} && ${WORLD_SIZE:-1} != 1 &&
        ${LOCAL_RANK:-} =~ ^[0-9]+$ ]]
}

# MindCluster starts once per machine, in torchrun's words: RANK is the machine's, LOCAL_RANK lists the
# cards. What ModelArts gives as 0, its default, it does not tell.
read_platform() { # sets nodes and cards
    local size name
    if [[ ${LOCAL_RANK:-} == *,* ]]; then
        require_number WORLD_SIZE "${WORLD_SIZE:-}" 1
        require_number LOCAL_WORLD_SIZE "${LOCAL_WORLD_SIZE:-}" 1
        export NNODES=${NNODES:-$((WORLD_SIZE / LOCAL_WORLD_SIZE))} NODE_RANK=${NODE_RANK:-${RANK:-}}
        cards=$LOCAL_WORLD_SIZE
    fi
    for name in MA_NUM_HOSTS MA_NUM_GPUS; do
        [[ ${!name:-} != 0 ]] || unset "$name"
    done
    take_number nodes 1 1 NNODES MA_NUM_HOSTS
    take_number size 0 0 RANK_SIZE
    ((size < 2)) || cards=$(((size + nodes - 1) / nodes)) # as many as the platform gives
    take_number cards "$cards" 1 MA_NUM_GPUS
}

# How many processes there are and who starts them. Sets RANK_SIZE (the processes of the whole
# training), starter (the words before train.py) and node; `reports` is empty where another
# machine or process writes the results and prints the figures.
plan_processes() {
    local master=${MASTER_ADDR:-${VC_WORKER_HOSTS:-}} port cores
    starter=("$PYTHON")
    if [[ -z $distributed ]]; then
        [[ ${RANK_SIZE:-1} == 1 ]] ||
            printf 'warning: RANK_SIZE=%s ignored: this script trains on one card\n' "$RANK_SIZE" >&2
        unset RANK_TABLE_FILE WORLD_SIZE RANK LOCAL_RANK
        export RANK_SIZE=1 RANK_ID=0
        return
    fi
    if by_torchrun; then
        export RANK_ID=$RANK RANK_SIZE=$WORLD_SIZE ASCEND_DEVICE_ID=$LOCAL_RANK
        unset RANK_TABLE_FILE
    fi
    if [[ -n ${RANK_TABLE_FILE:-}$master && -n ${RANK_ID:-} && ${RANK_SIZE:-1} != 1 &&
        -z ${NNODES:-} ]]; then # torchrun's variable is the user's word
        require_number RANK_ID "$RANK_ID" 0
        take_number node 0 0 NODE_RANK VC_TASK_INDEX GROUP_RANK
        output_path=${output_path:-$output/0/ckpt} # one folder for all ranks
        ((RANK_ID == 0)) || reports=
        return
    fi
    [[ -n ${NNODES:-} || ${RANK_ID:-0} == 0 ]] || # NNODES: torchrun's words
        fail 2 "RANK_ID=$RANK_ID, and neither RANK_TABLE_FILE nor MASTER_ADDR tells where the first process is; unset RANK_ID for a training by this start alone"
    export RANK_SIZE=$((cards * nodes))
    # torchrun tells each process its rank and card; one card's number would mislead them all. From a
    # rank table torch_npu would build HCCL.
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE
    export -n ASCEND_DEVICE_ID NPU_CALCULATE_DEVICE RANK_ID RANK_TABLE_FILE
    cores=$(nproc 2>/dev/null || echo 1)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > cards ? cores / cards : 1))}
    starter+=("$ROOT/test/torchrun.py" "--nproc-per-node=$cards")
    if ((nodes == 1)); then
        starter+=(--standalone --local-addr=127.0.0.1)
        return
    fi
    take_number node 0 0 NODE_RANK VC_TASK_INDEX
    take_number port 29500 1 MASTER_PORT
    ((node < nodes)) || fail 2 "NODE_RANK=$node with NNODES=$nodes; machines count from 0"
    ((port <= 65535)) || fail 2 "MASTER_PORT=$port is no port; expected 1 to 65535"
    [[ -n $master ]] || fail 2 "NNODES=$nodes needs MASTER_ADDR, the address of the first machine"
    starter+=("--nnodes=$nodes" "--node-rank=$node" "--master-addr=${master%%,*}"
        "--master-port=$port")
    ((node == 0)) || reports=
}

# Where the logs go: below the results if the repository cannot be written, as on some platforms.
choose_output() { # sets output
    output=$ROOT/test/output
    if mkdir -p -- "$output" 2>/dev/null && [[ -w $output ]]; then return; fi
    [[ -n $output_path ]] ||
        fail 1 "cannot write in $output; name another place with --output_path=FOLDER"
    output=$output_path/logs
    make_folder "$output"
}

# One "loss step_time" line an epoch, on standard output. An epoch that a resumed run repeated
# counts once, as it was the last time.
epoch_lines() { # < LOG
    LC_ALL=C awk -F '[ =,]+' '
        /^warning: no checkpoint in / { n = 0; split("", last) } # all before is another training
        /^epoch[0-9]+ : loss=[^,]+, each_step_time=[0-9.]+$/ {
            if (!($1 in last)) order[++n] = $1
            last[$1] = $4 " " $6
        }
        END { for (i = 1; i <= n; i++) print last[order[i]] }'
}

last_field() { # PATTERN < LOG: the last matching line's field, counted from the left
    LC_ALL=C awk -v field="$2" "/$1/ { found = \$field } END { print found }"
}

# The figures of a finished training: ${CaseName}_loss.txt, ${CaseName}.log and the final block.
#   each step's time   mean of each_step_time over the epochs, in s; compiling steps not in it
#   ActualFPS          patches a second of all processes: batch_size x RANK_SIZE / step time
#   TrainingTime       ms a step
#   ActualLoss         the last epoch's loss
#   E2ETrainingTime    s from the start of train.py to its end, evaluation and compilation in it
#   TrainAccuracy      dB, PSNR of the best epoch, protocol modelzoo, chosen on the set it is from
#   CompileTime        s that the first steps took, compilation and warm-up; n/a when not logged
report() { # LOG SECONDS
    local log=$1 seconds=$2 name case_name epochs figures fps step_time step_ms loss psnr last
    local batch_size # what train.py took, as its options may be others than the script's
    batch_size=$(LC_ALL=C sed -n 's/^recipe: .* steps of \([0-9]*\) samples .*/\1/p' "$log" | tail -n 1)
    name=${ROOT##*/}
    case_name=${name}_bs${batch_size}_${RANK_SIZE}p_$kind
    epochs=$(epoch_lines <"$log")
    psnr=$(last_field '^best epoch: [0-9]+, psnr: ' 5 <"$log")
    [[ -n $batch_size && -n $epochs && -n $psnr ]] ||
        fail 1 "$log holds no figures: no line of the recipe, of an epoch or of the best epoch"
    figures=$(LC_ALL=C awk -v patches=$((batch_size * RANK_SIZE)) '
        { sum += $2; loss = $1 }
        END { if (sum > 0) printf "%.2f %.5f %.2f %s", patches * NR / sum, sum / NR,
                                  1000 * sum / NR, loss }' <<<"$epochs")
    [[ -n $figures ]] || fail 1 "$log holds no figures: each_step_time is 0"
    read -r fps step_time step_ms loss <<<"$figures"
    if [[ $kind == acc ]]; then
        last="TrainAccuracy = $psnr"
    else
        last="CompileTime = $(last_field '^first [0-9]+ steps?: ' 4 <"$log")"
        [[ $last != *= ]] || last+=n/a
    fi
    cut -d ' ' -f 1 <<<"$epochs" >"$folder/${case_name}_loss.txt"
    printf '%s\n' "Network = $name" "RankSize = $RANK_SIZE" "BatchSize = $batch_size" \
        "DeviceType = $(uname -m)" "CaseName = $case_name" "ActualFPS = $fps" \
        "TrainingTime = $step_ms" "ActualLoss = $loss" "E2ETrainingTime = $seconds" "$last" \
        >"$folder/$case_name.log"
    report_device <"$log"
    printf '%s\n' '------------------ Final result ------------------' \
        "Final Performance images/sec : $fps" "Final Performance sec/step : $step_time" \
        "E2E Training Duration sec : $seconds" "Final Train Accuracy : $psnr"
}

report_device() { # < LOG: what train.py says that it used, and what its PSNR is of
    LC_ALL=C awk '
        /^device: / { line = $0 }
        /^evaluation set: / { measured = $0 }
        /^\(chosen on / { chosen = $0 }
        END {
            if (line ~ /^device: npu/) print "the NPU was used (" line ")"
            else if (line) print "no NPU was used (" line ")"
            else print "the log does not tell which device was used"
            print measured "\n" chosen
        }'
}

# Whether train.py took all that it was given: it tells its recipe then, and goes on to its results.
began() { grep -q '^recipe: ' "$log"; }

# Earlier results get their name back after a training that left nothing but its log, which comes to
# lie beside theirs. On a platform the log stays: it is looked for under its own name.
put_back() { # sets log
    local kept=$aside/${log##*/}_${aside#"$folder"_}
    [[ -n $aside && -n $reports && -z ${MODELARTS_MODEL_PATH:-} ]] || return 0
    if began || [[ $(find "$folder" ! -type d) != "$log" ]]; then return 0; fi
    while [[ -e $kept ]]; do kept+=_; done
    mv -- "$log" "$kept" || return 0
    log=$kept
    find "$folder" -depth -type d -exec rmdir -- {} + && mv -T -- "$aside" "$folder" || return 0
    log=$folder/${kept##*/}
    printf 'earlier results are back in %s\n' "$folder"
}

# What train.py says of --resume is for those who started it themselves. The boot files of ModelArts
# name their own words in GO_ON_WITH.
tell_how_to_go_on() { # STATUS
    local checkpoints=("$output_path"/x*/checkpoint_*.pt)
    case $1 in 129 | 130 | 143) ;; *) return 0 ;; esac
    began && [[ -e ${checkpoints[0]} ]] || return 0
    printf 'to go on from the checkpoint: the same command with %s\n' \
        "${GO_ON_WITH:-"--resume after --"}" >&2
}

# One training at a time in $folder; status 1 of flock is another's lock, all others its own trouble.
lock_folder() {
    local status=0
    { exec 9>"$folder.lock"; } 2>/dev/null || fail 1 "cannot write $folder.lock"
    command -v flock >/dev/null || return 0
    flock -n 9 2>/dev/null || status=$?
    ((status != 1)) || fail 1 "another training is using $folder; set ASCEND_DEVICE_ID for one beside it"
    ((status == 0)) ||
        printf 'warning: %s cannot be locked; start no second training there\n' "$folder" >&2
}

# A whole training. KIND is acc or perf; LR may be empty (train.py chooses); the script's own
# arguments follow.
train() { # KIND CARDS EPOCHS BATCH_SIZE LR ARGUMENT…
    local kind=$1 cards=$2 train_epochs=$3 batch_size=$4 lr=$5 train_steps=0 data_path='' extra=()
    local output_path='' resume='' trains=yes distributed='' reports=yes starter=() node=0 nodes=1
    local output folder log seconds status=0 options aside=''
    shift 5
    if ((cards > 1)); then
        distributed=yes
        read_platform
    fi
    parse_options "$@"
    [[ $kind == acc ]] || export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-2}
    prepare
    choose_output
    plan_processes
    folder=$output/$ASCEND_DEVICE_ID
    ((node == 0)) || folder+=_node$node # the machines may share the repository's folder
    output_path=${output_path:-$folder/ckpt}
    log=$folder/train_$ASCEND_DEVICE_ID.log

    options=("--data_url=$data_path" "--train_url=$output_path" "--num-epochs=$train_epochs"
        "--num-steps=$train_steps" "--batch-size=$batch_size" ${lr:+"--lr=$lr"} "${extra[@]}")
    [[ -n $trains ]] || exec "$PYTHON" "$ROOT/train.py" "${options[@]}"
    lock_folder
    # Where nothing can be written, earlier results stay; a folder inside theirs is made after them.
    [[ $output_path/ == "$folder"/* ]] || make_folder "$output_path"
    [[ -n $resume ]] || set_aside "$folder"
    make_folder "$folder"
    make_folder "$output_path"

    printf 'training log: %s\n' "$log"
    seconds=$SECONDS
    run_logged "$log" device "${starter[@]}" "$ROOT/train.py" "${options[@]}" || status=$?
    seconds=$((SECONDS - seconds))
    if ((status)); then
        put_back
        explain_failure "$status" "$log" "${MODELARTS_MODEL_PATH:-}"
        tell_how_to_go_on "$status"
        exit "$status"
    fi
    if [[ -n $reports ]]; then
        report "$log" "$seconds"
    else
        echo "finished; the first process of the training prints the figures"
    fi
}
