"""What one call will do to the streams of a batch, worked out from integers before anything is touched.

Plans are immutable and pure: they know no keys, no angles and no model.

Words
-----
S, W
    Sizes of one `Reach`: a query sees S sinks and the W most recent tokens besides itself.
stream position t
    How many real tokens of the row came before this one. It grows for ever.
cache position
    The place a token has inside the cache, which attention scores must look like: at most S + W.
origin
    What is subtracted from stream positions before they become angles. It moves along so that angles stay small.
model position
    t - origin, what the rotary module is given.
slot
    Where a key lies in memory. Sinks lie in slots 0 .. S-1; behind them lies a ring of W + 1 slots, in which the token
    at t >= S lies in slot S + (t - S) mod (W + 1).
column
    Where a token stands in the input of a call.
key layout
    The keys that a call of several tokens attends to, side by side: the S sinks, the W newest cached tokens from old to
    new, the new columns. A call without a past has the new columns alone.
R
    1 where all rows of a batch agree, else the batch size.
"""
