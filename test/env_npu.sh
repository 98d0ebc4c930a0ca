#!/usr/bin/env bash
# The environment of an Ascend NPU, to be sourced: `. test/env_npu.sh`. What is set already stays,
# and on a machine without CANN nothing but a few unused variables comes of it.

# CANN's own set_env.sh: from where ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME point, or, with neither
# set, from where conda and pip install it for this Python, or from the usual places. Nothing is
# sourced when its libraries are on LD_LIBRARY_PATH already.
source_cann() {
    local home=${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}} place places options=$- found
    [[ -z $home || :${LD_LIBRARY_PATH:-}: != *:"${home%/}"/lib64:* ]] || return 0
    mapfile -t found < <("${PYTHON:-python3}" -c \
        'import sys; print(sys.prefix, *sys.path[1:], sep="\n")' 2>/dev/null)
    places=("${found[0]:-/nonexistent}"/Ascend/{cann,ascend-toolkit}) # conda's
    for place in "${found[@]:1}"; do places+=("$place"/ascend/cann-*); done # pip's
    places+=({/usr/local,"${HOME:-/nonexistent}"}/Ascend/{cann,ascend-toolkit,nnae})
    [[ -z $home ]] || places=("$home" "$home/..")
    for place in "${places[@]}"; do
        [[ -r $place/set_env.sh ]] || continue
        set +eu # many a set_env.sh reads unset variables or has commands that fail
        # shellcheck source=/dev/null
        . "$place/set_env.sh"
        [[ $options != *e* ]] || set -e
        [[ $options != *u* ]] || set -u
        return 0
    done
}

source_cann
# The driver's libraries: inside a container nobody else adds them.
for _folder in /usr/local/Ascend/driver/lib64/{common,driver}; do
    if [[ -d $_folder && :${LD_LIBRARY_PATH:-}: != *:"$_folder":* ]]; then
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$_folder
    fi
done
unset _folder
unset -f source_cann

export ASCEND_GLOBAL_LOG_LEVEL=${ASCEND_GLOBAL_LOG_LEVEL:-3}       # errors only
export ASCEND_SLOG_PRINT_TO_STDOUT=${ASCEND_SLOG_PRINT_TO_STDOUT:-0} # in files, not on the screen
export TASK_QUEUE_ENABLE=${TASK_QUEUE_ENABLE:-1}                   # launch kernels from a queue
export HCCL_WHITELIST_DISABLE=${HCCL_WHITELIST_DISABLE:-1}         # no list of trusted hosts
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}         # s; the first compilation is slow
