#!/usr/bin/env bash
# What the training and evaluation scripts share: paths, environment, a command with its log.

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && printf '%s/' "$PWD")
ROOT=${ROOT%/} # the slash kept a newline at the end of the folder's name alive

fail() { # STATUS MESSAGE
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

require_number() { # NAME VALUE LEAST
    [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ && $2 -ge $3 ]] || fail 2 "$1=$2 is no whole number from $3 up"
}

take_number() { # VARIABLE DEFAULT LEAST NAME…: from the first of these variables that is set
    local name found=$2
    for name in "${@:4}"; do
        [[ -n ${!name:-} ]] || continue
        require_number "$name" "${!name}" "$3"
        found=${!name}
        break
    done
    printf -v "$1" %s "$found"
}

absolute() { # VARIABLE: its path, seen from the caller's working directory
    [[ -n ${!1} ]] || fail 2 "--$1= is empty"
    [[ ${!1} == /* ]] || printf -v "$1" '%s/%s' "$PWD" "${!1}"
}

# The card, which is also the name of the folder of logs, and the interpreter.
prepare() {
    take_number ASCEND_DEVICE_ID 0 0 ASCEND_DEVICE_ID NPU_CALCULATE_DEVICE
    export ASCEND_DEVICE_ID
    export NPU_CALCULATE_DEVICE=${NPU_CALCULATE_DEVICE:-$ASCEND_DEVICE_ID}
    export JOB_ID=${JOB_ID:-10087} PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=python3
        [[ ! -x $ROOT/.venv/bin/python ]] || PYTHON=$ROOT/.venv/bin/python
    fi
    command -v -- "$PYTHON" >/dev/null || fail 2 "no Python interpreter $PYTHON; name one in PYTHON"
    # shellcheck source=/dev/null
    . "$ROOT/test/env_npu.sh"
}

make_folder() { # FOLDER
    mkdir -p -- "$1" 2>/dev/null || fail 1 "cannot make the folder $1"
    [[ -w $1 ]] || fail 1 "cannot write in $1"
}

# Earlier results are never deleted: PATH becomes PATH_20260131-235959.
set_aside() { # PATH; sets aside, that new name
    aside=
    [[ -e $1 ]] || return 0
    aside=$1_$(date +%Y%m%d-%H%M%S)
    while [[ -e $aside ]]; do aside+=_; done
    mv -- "$1" "$aside" || fail 1 "cannot move earlier results from $1 to $aside"
    printf 'earlier results moved to %s\n' "$aside"
}

# Under ModelArts: the platform's log of this process; several processes have one each.
platform_log() { # sets platform_log
    local folder=${MODELARTS_LOG_DIR:-/home/ma-user/modelarts/log} file
    platform_log=
    for file in "$folder"/*proc-rank-"${RANK_ID:-0}"-* "$folder"/*proc-rank*; do
        [[ ! -f $file || ! -w $file ]] || { platform_log=$file && return; }
    done
}

forward() { # SIGNAL, to $child; kept in $early as long as there is none
    signalled=1
    if [[ -z $child ]]; then
        early=$1
    else
        kill -s "$1" -- "$child" 2>/dev/null || true
    fi
}

# Run COMMAND and return its exit status. INT, TERM and HUP reach it, each once: it has a process group
# of its own, so that Ctrl-C comes through the trap only.
run() { # COMMAND…
    local child='' signalled='' early='' status=0
    launch "$@"
    await || status=$?
    trap - INT TERM HUP
    return "$status"
}

launch() { # COMMAND…; sets the caller's child
    trap 'forward INT' INT
    trap 'forward TERM' TERM HUP
    set -m
    "$@" </dev/null &
    child=$!
    set +m
    [[ -z $early ]] || forward "$early"
}

await() { # the end of $child, whose status it returns; signals are still forwarded then
    local status
    while signalled=; do
        status=0
        wait "$child" || status=$?
        [[ -n $signalled ]] || break # else it was a signal that ended the wait
    done
    return "$status"
}

# Run COMMAND likewise, its output added to LOG, straight, so that nothing that happens to a reader (a
# closed screen) can stop it.
run_logged() { # LOG SHOW COMMAND…; SHOW: what the screen gets of it: "device", that line, or "screen"
    local log=$1 show=$2 start copies=() copier status=0 child='' signalled='' early=''
    shift 2
    if [[ -n ${MODELARTS_MODEL_PATH:-} ]]; then
        show=screen
        platform_log
        [[ -z $platform_log ]] || copies=("$platform_log")
    fi
    { : >>"$log"; } 2>/dev/null || fail 1 "cannot write the log $log"
    start=$(($(wc -c <"$log") + 1))
    launch "$@" >>"$log" 2>&1
    (
        trap '' INT TERM HUP
        tail -c "+$start" -f -s 0.2 --pid="$child" -- "$log" |
            if [[ $show == screen ]]; then tee -a -- "${copies[@]}"; else grep -m 1 '^device: '; fi
    ) &
    copier=$!
    await || status=$?
    wait "$copier" || true
    trap - INT TERM HUP
    return "$status"
}

explain_failure() { # STATUS LOG SHOWN; SHOWN: not empty where the log's lines are on the screen
    if [[ -n $3 ]]; then
        printf 'error: ended with status %s; log: %s\n' "$1" "$2" >&2
        return
    fi
    {
        printf 'error: ended with status %s; the last lines of %s:\n' "$1" "$2"
        tail -n 20 <"$2"
    } >&2
}
