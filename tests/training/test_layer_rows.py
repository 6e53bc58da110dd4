"""Rows of a step layer by layer: chunks, documents, targets."""

import torch

from featherweight.training.layer_rows import label_count, rows_of


def test_a_row_is_cut_into_chunks_without_those_of_padding_alone_and_labels_are_shifted():
    ids = torch.arange(1, 11)[None]
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    (row,) = rows_of({"input_ids": ids, "labels": ids, "attention_mask": mask}, 4)
    assert row.bounds == [(4, 8), (8, 10)]
    assert row.targets.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9, 10, -100]]
    assert row.documents.tolist() == [-1] * 4 + [0] * 6
    assert row.cut(row.tokens, 1)["input_ids"].tolist() == [[9, 10]]
    assert label_count([row]) == 9


def test_documents_are_told_by_positions_that_begin_anew_and_one_document_by_nothing():
    ids = torch.ones(1, 6, dtype=torch.long)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    (packed,) = rows_of({"input_ids": ids, "labels": ids, "position_ids": positions}, 6)
    assert packed.documents.tolist() == [0, 0, 0, 1, 1, 1]
    (single,) = rows_of({"input_ids": ids, "labels": ids, "position_ids": torch.arange(6)[None]}, 6)
    assert single.documents is None
