"""What the analysis would have decided over a stretch of the past. Pure: it is fed moments.

`replay` feeds the same analysis as the operator's; `thresholds` tells what static rules would have
done with the same counts; `splitting` makes two arms of one pool, to see how often an innocent
canary would have been rolled back.
"""
