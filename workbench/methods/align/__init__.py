"""Methods that change the policy's weights, one file each. No method imports another."""
