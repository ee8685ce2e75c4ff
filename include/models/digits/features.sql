-- The sixty-four pixels as they are; the digit itself is the label and not among the rows.
SELECT sample_id, COLUMNS('^p\d\d$') FROM rows
