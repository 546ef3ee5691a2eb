"""Networks with several exits: outputs of growing cost, each built on all earlier ones, computed step by step."""
