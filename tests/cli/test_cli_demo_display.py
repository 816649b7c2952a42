"""The demo's display: each of its lines stays one line, or it could not be drawn again in its place."""

from virtserial.cli.demo.display import cut


def test_a_line_is_cut_where_the_terminal_ends_and_keeps_its_colours():
    line = "hvc0  $ wc  \033[2m→\033[0m 7  \033[2m(6 ms)\033[0m"
    assert cut(line, 80) == line
    assert cut(line, 17) == "hvc0  $ wc  \033[2m→\033[0m 7  \033[2m\033[0m"
    assert cut("plain", 0) == ""
