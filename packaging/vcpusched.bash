# bash completion for vcpusched(8)                                          -*- shell-script -*-

_vcpusched() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
  local verb=${COMP_WORDS[1]} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="run plan snapshot status top history restore release pause resume check-config
      simulate --version --help"
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    return
  fi
  case $before in
  --config | --from | --trace | -o)
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
    compopt -o filenames 2>/dev/null
    return
    ;;
  --uri) words="qemu:///system qemu:///session" ;;
  --explain | --domain)
    _vcpusched_domains "$word"
    return
    ;;
  --for | --since) words="15m 30m 1h 2h 1d" ;;
  --place) words="random round-robin one floating" ;;
  --cpus | --vcpus | --mean | --periods | --seed) return ;;
  esac
  if [ -z "$words" ] && [[ $word == -* ]]; then
    case $verb in
    run) words="--once --dry-run --exit-when-idle --uri --config --help" ;;
    plan) words="--from --explain --json --uri --config --help" ;;
    snapshot) words="-o --uri --config --help" ;;
    status) words="-v --json --help" ;;
    top) words="--help" ;;
    history) words="--since --domain --json --help" ;;
    restore | release | check-config) words="--uri --config --help" ;;
    pause) words="--for --help" ;;
    resume) words="--help" ;;
    simulate)
      words="--trace --generate --cpus --vcpus --mean --periods --seed --place --json --config
        --help"
      ;;
    esac
  elif [ -z "$words" ]; then
    case $verb in
    restore | release)
      _vcpusched_domains "$word"
      return
      ;;
    simulate)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      compopt -o filenames 2>/dev/null
      return
      ;;
    esac
  fi
  [ -z "$words" ] || mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}

# Offers the running domains whose names begin so. "compgen -W" would run a name like $(reboot).
_vcpusched_domains() {
  local name
  while IFS= read -r name; do
    if [ -n "$name" ] && [[ $name == "$1"* ]]; then
      COMPREPLY+=("$(printf %q "$name")")
    fi
  done < <(virsh --quiet --readonly --connect qemu:///system list --name 2>/dev/null)
}

complete -F _vcpusched vcpusched
