"""An optimizer whose groups are slots: split, filled, its schedulers, factors around a step."""
