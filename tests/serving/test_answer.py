from types import SimpleNamespace

from featherweight.serving.answer import Answer


def cut(stops, pieces):
    answer = Answer(SimpleNamespace(writer=lambda: None), SimpleNamespace(stops=stops), None)
    shown = ""
    for index, piece in enumerate(pieces):
        more, is_over = answer._cut(piece, is_last=index == len(pieces) - 1)
        shown += more
        if is_over:
            break
    return shown


def test_a_stop_text_is_found_across_pieces_and_its_beginning_is_held_back_only_as_long_as_it_may_be_one():
    assert cut(("END",), ["ab", "cE", "N", "D more"]) == "abc"
    assert cut(("END",), ["abE", "Nx", "yE"]) == "abENxyE"
    assert cut(("b", "abc"), ["xa", "bc"]) == "x"
    assert cut((), ["a", "b"]) == "ab"
