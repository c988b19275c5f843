"""Plans say what one call will do to the streams of a batch. They are worked out before anything is touched.

A plan is immutable and follows from integers alone: it knows no keys, no angles and no model.

Words
-----
stream
    The real tokens of one row of a batch, without end. Padding is part of no stream.
sink
    One of the first S tokens of a stream. It is never evicted.
window
    The W most recent tokens before the current one.
S, W
    Sizes of one `Reach`: a query sees S sinks and the W most recent tokens besides itself.
step, block
    A step is a call of one token per row. A block is several new tokens per row, in one call or in one chunk of it.
stream position t
    How many real tokens of the row came before this one. It grows without end.
cache position
    The place of a token among the tokens that a query sees, at most S + W. Attention scores look as if the token stood
    there.
origin
    What is subtracted from stream positions before they become angles. A rebase moves it on, so that angles stay small.
model position
    t - origin, what the rotary module is given.
delta
    The query's model position less its cache position: how far a sink is from where the query must see it.
slot
    Where a key lies in memory. Sinks lie in slots 0 .. S-1; behind them lies a ring of W + 1 slots, in which the token
    at t >= S lies in slot S + (t - S) mod (W + 1).
column
    Where a token stands in the input of a call.
key layout
    The keys that a block attends to, side by side: the S sinks, the W newest cached tokens from old to new, the new
    columns. In a call without a past it has the new columns alone.
R
    1 where all rows of a batch agree, else the batch size.
"""
