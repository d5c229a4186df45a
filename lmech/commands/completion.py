"""`lmech completion`: words for the shell to complete."""

from lmech.commands import new_parser

# Each asks `lmech completion words` for one word a line, with a TAB and what it is. Bash (4.3 or
# later) cuts words at = and :, lmech does not: they are put together again, and what stands before
# is cut off.
BASH = r"""
_lmech() {
    local word current="" words=() joins="" line prefix
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if [[ -n $joins || $word == [=:]* ]] && ((${#words[@]})); then
            words[-1]+=$word
        else
            words+=("$word")
        fi
        [[ $word == *[=:] ]] && joins=yes || joins=""
    done
    current=${words[-1]}
    prefix=${current%"${current##*[=:]}"}
    [[ $current == [\"\']* ]] && prefix="" current=${current:1}  # it cuts no quoted word
    COMPREPLY=()
    while IFS=$'\t' read -r line _; do
        case $line in
            :folders) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
            :files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
            *) COMPREPLY+=("${line#"$prefix"}") ;;
        esac
    done < <("$1" completion words "${words[@]}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -F _lmech lmech
"""
ZSH = r"""
_lmech() {
    local line word told
    local -a going going_told whole whole_told
    while IFS=$'\t' read -r word told; do
        case $word in
            :folders) _files -/ ;;
            :files) _files ;;
            *[=.]) going+=($word); going_told+=("$word  $told") ;;
            *) whole+=($word); whole_told+=("$word  $told") ;;
        esac
    done < <($words[1] completion words "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    (( $#going )) && compadd -S '' -d going_told -a going
    (( $#whole )) && compadd -d whole_told -a whole
    return 0
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _lmech lmech
"""
FISH = r"""
function __lmech
    set -l line (commandline -opc) (commandline -ct)
    for found in ($line[1] completion words $line[2..-1] 2>/dev/null)
        switch $found
            case ':folders*'
                __fish_complete_directories (commandline -ct)
            case ':files*'
                __fish_complete_path (commandline -ct)
            case '*'
                echo $found
        end
    end
end
complete -c lmech -f -a '(__lmech)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def main(words: list[str]) -> int:
    """Run `lmech completion`; returns the exit code."""
    if words[:1] == ["words"]:
        from lmech import cli, completing

        *before, current = [word.strip("'\"") for word in words[1:]] or [""]
        for word in completing.complete(before, current, cli.COMMANDS):
            print(f"{word.text}\t{word.told}")
        return 0
    parser = new_parser(
        "completion",
        "Print what teaches a shell to complete lmech's commands, options, experiments, config "
        "groups, keys and their values, those of the project that you are in among them.",
        {
            'eval "$(lmech completion bash)"': "in ~/.bashrc",
            'eval "$(lmech completion zsh)"': "in ~/.zshrc",
            "lmech completion fish | source": "in ~/.config/fish/config.fish",
        },
    )
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="whose script to print")
    print(SCRIPTS[parser.parse_args(words).shell].strip())
    return 0
