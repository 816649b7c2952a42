# Completion of virtserial(1) for bash: commands, and the options of `serve`.
_virtserial() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$(virtserial --help | awk '/^  [a-z]/ {print $1}') --help --version" -- "$word")
    elif [ "${COMP_WORDS[1]}" = serve ]; then
        case $before in
            -device) mapfile -t COMPREPLY < <(compgen -W "virtio-serial virtserialport virtconsole" -- "$word") ;;
            -chardev)
                mapfile -t COMPREPLY < <(compgen -W "$(virtserial serve -chardev help | awk '/^  ?[a-z]/ {print $1}')" -- "$word")
                ;;
            *)
                mapfile -t COMPREPLY < <(compgen -W "-device -chardev -object -qmp -monitor -mon --ready-fd --exit-with-parent --trust-vmm
                    --allow-path --sandbox=off --name
                    --log-format -D --verbose --help" -- "$word")
                ;;
        esac
    elif [ "${COMP_WORDS[1]}" = exporter ]; then
        mapfile -t COMPREPLY < <(compgen -W "--listen --tls-cert --tls-key --max-ports --once --help" -- "$word")
    elif [[ ${COMP_WORDS[1]} =~ ^(restart|ports|ssh|health)$ && $before != --monitor ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(virtserial ls 2> /dev/null | awk 'NR > 1 {print $1}')
            --monitor --worker --json --watch --wait --help" -- "$word")
    elif [[ $COMP_CWORD -eq 2 && ${COMP_WORDS[1]} =~ ^(console|pipe|send|receive|log|record)$ ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(virtserial ports 2> /dev/null | awk 'NR > 1 {print $1}')" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -o default -F _virtserial virtserial
