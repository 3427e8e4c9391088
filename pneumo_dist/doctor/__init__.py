"""What a node lacks for training: small checks over facts, each finding with its mend."""
