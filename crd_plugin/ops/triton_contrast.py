"""The scored pass of the CRD objective as one Triton kernel per direction.

The plain loop in ``contrast.py`` writes gathered rows and scores to memory and reads them back
several times. Here a program keeps them on the chip: it loads a block of rows by their ids, scores
its anchors against them, and adds softplus sums and ``sigmoid @ rows`` to its own part of the
result. Parts are added afterwards, so the sums do not depend on the order of the programs.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .negatives import Negatives

# Numbers in a block of rows, which has to fit on the chip: 64 rows of width 128.
_BLOCK = 1 << 13
_MOST_PARTS = 256


def scored_pass(
    slots: Tensor, banks: Sequence[Tensor], negatives: Negatives, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what ``contrast._scored_pass`` does, for float32 anchors and negatives without counts."""
    slots = slots.contiguous()
    directions, sets, anchors, width = slots.shape
    length = negatives.rows_per_set
    block_width = max(16, triton.next_power_of_2(width))
    block_rows = max(16, min(64, _BLOCK // block_width))
    per_part = max(4 * block_rows, triton.cdiv(length, _MOST_PARTS))
    per_part = triton.cdiv(per_part, block_rows) * block_rows
    parts = triton.cdiv(length, per_part)
    loss = slots.new_empty(directions, parts, sets, anchors)
    left_out = torch.empty_like(loss)
    grad = slots.new_empty(directions, parts, sets, anchors, width)
    # Without ids or keys the kernel does not read what stands in their place.
    ids = slots if negatives.rows is None else negatives.rows.contiguous()
    row_key = own_key = slots
    keyed = negatives.row_key is not None
    if negatives.row_key is not None and negatives.anchor_key is not None:
        row_key = negatives.row_key.contiguous()
        own_key = negatives.anchor_key[negatives.anchors]
    block_anchors = min(32, max(16, triton.next_power_of_2(anchors)))
    with torch.cuda.device_of(slots):
        for direction, bank in enumerate(banks):
            _score[(triton.cdiv(anchors, block_anchors), sets, parts)](
                slots[direction],
                bank,
                ids,
                row_key,
                own_key,
                shift[direction : direction + 1],
                loss[direction],
                left_out[direction],
                grad[direction],
                length,
                anchors,
                width,
                per_part,
                HAS_IDS=negatives.rows is not None,
                HAS_KEYS=keyed,
                BLOCK_ANCHORS=block_anchors,
                BLOCK_ROWS=block_rows,
                BLOCK_WIDTH=block_width,
            )
    return loss.sum(1), grad.sum(1), left_out[0].sum(0)


@triton.jit
def _score(
    query_ptr,
    bank_ptr,
    ids_ptr,
    row_key_ptr,
    anchor_key_ptr,
    shift_ptr,
    loss_ptr,
    left_out_ptr,
    grad_ptr,
    length,
    num_anchors,
    width,
    per_part,
    HAS_IDS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    BLOCK_ANCHORS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Score a block of the anchors of one set against one part of its rows."""
    one_set, part = tl.program_id(1), tl.program_id(2)
    anchor = tl.program_id(0) * BLOCK_ANCHORS + tl.arange(0, BLOCK_ANCHORS)
    column = tl.arange(0, BLOCK_WIDTH)
    slot = one_set * num_anchors + anchor
    is_anchor, is_column = anchor < num_anchors, column < width
    inside = is_anchor[:, None] & is_column[None, :]
    at = slot[:, None] * width + column[None, :]
    query = tl.load(query_ptr + at, mask=inside, other=0.0)
    shift = tl.load(shift_ptr)
    if HAS_KEYS:
        own = tl.load(anchor_key_ptr + slot, mask=is_anchor, other=0)
    loss = tl.zeros([BLOCK_ANCHORS], tl.float32)
    left_out = tl.zeros([BLOCK_ANCHORS], tl.float32)
    grad = tl.zeros([BLOCK_ANCHORS, BLOCK_WIDTH], tl.float32)
    for start in range(0, per_part, BLOCK_ROWS):
        place = part * per_part + start + tl.arange(0, BLOCK_ROWS)
        is_row = place < length
        row = place.to(tl.int64)
        if HAS_IDS:
            row = tl.load(ids_ptr + one_set * length + place, mask=is_row, other=0)
        rows = tl.load(
            bank_ptr + row[:, None] * width + column[None, :],
            mask=is_row[:, None] & is_column[None, :],
            other=0.0,
        ).to(tl.float32)
        # Not TF32: it has three digits.
        score = tl.dot(query, tl.trans(rows), input_precision='ieee') - shift
        kept = is_anchor[:, None] & is_row[None, :]
        if HAS_KEYS:
            key = tl.load(row_key_ptr + row, mask=is_row, other=0)
            same = own[:, None] == key[None, :]
            left_out += tl.sum(tl.where(kept & same, 1.0, 0.0), 1)
            kept = kept & (same == 0)
        small = tl.exp(-tl.abs(score))
        # log(1 + small) by its series in z: the logarithm of a number near 1 has few digits, and
        # the interpreter has no log1p.
        z = small / (2.0 + small)
        y = z * z
        log1p = 1 / 9 + y * (1 / 11 + y * (1 / 13 + y * (1 / 15)))
        log1p = 2.0 * z * (1.0 + y * (1 / 3 + y * (1 / 5 + y * (1 / 7 + y * log1p))))
        slope = tl.where(score > 0, 1.0, small) / (1.0 + small)
        loss += tl.sum(tl.where(kept, tl.maximum(score, 0.0) + log1p, 0.0), 1)
        slope = tl.where(kept, slope, 0.0)
        grad += tl.dot(slope, rows, input_precision='ieee')
    out = part * tl.num_programs(1) * num_anchors + slot
    tl.store(loss_ptr + out, loss, mask=is_anchor)
    tl.store(left_out_ptr + out, left_out, mask=is_anchor)
    tl.store(grad_ptr + out[:, None] * width + column[None, :], grad, mask=inside)
