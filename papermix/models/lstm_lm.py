"""LSTM language model with the dropouts of AWD-LSTM, all optional."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from papermix.errors import UserError
from papermix.models.image_model import check_positive, check_rate
from papermix.sparsity.mask import follow_parametrizations

State = tuple[tuple[Tensor, Tensor], ...]


class LockedDropout(nn.Module):
    """Variational dropout: one mask per stream and feature, the same at all time steps of a call (Gal & Ghahramani 2016).

    Takes and returns [B, T, C]. Kept values are divided by 1 - p.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropConnect(nn.Module):
    """Dropout on a weight (Merity et al. 2018, section 2), as a parametrization: one mask for a whole forward pass."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, self.p) if self.training and self.p else weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight that is assigned is the one under the dropout."""
        return weight

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LSTMLM(nn.Module):
    """Embedding -> LSTM layers -> linear layer over the vocabulary (Zaremba et al. 2014; Merity et al. 2018 with the dropouts).

    The layers are one fused ``nn.LSTM`` unless something stands between them (``dropout_hidden``, a last layer of another
    width); then each layer is an ``nn.LSTM`` of its own.

    The state is a tuple, one entry (h, c) for each ``nn.LSTM``, each [its layers, B, width]: the batch is dimension 1.

    Initialisation: embedding U(-init_range, init_range), output bias 0, output weights (unless tied), LSTM weights and biases
    U(-1, 1) / sqrt(width) (PyTorch's). With ``forget_bias`` the two bias vectors of the forget gates sum to that number.

    Args:
        vocab_size: V, number of different tokens.
        layers: LSTM layers.
        width: hidden units of a layer.
        embedding: size of the token embedding; null: ``width``.
        tied: output weights are the embedding (Press & Wolf 2017; Inan et al. 2017); the last layer then has ``embedding`` units.
        dropout_embedding: probability of dropping a token of the vocabulary from the inputs of a call, all its occurrences.
        dropout_in: locked dropout on the embedded inputs.
        dropout_hidden: locked dropout between LSTM layers.
        dropout_out: locked dropout on the last layer's outputs.
        weight_drop: dropout on the hidden-to-hidden weights, one mask per call.
        forget_bias: initial bias of the forget gates (Jozefowicz et al. 2015: 1); null: PyTorch's.
        init_range: see above.

    Raises:
        UserError: a size below 1, a probability outside [0, 1), dropout between layers where there is one layer.
    """

    stateful = True

    def __init__(
        self,
        vocab_size: int,
        layers: int = 1,
        width: int = 512,
        embedding: int | None = None,
        tied: bool = False,
        dropout_embedding: float = 0.0,
        dropout_in: float = 0.0,
        dropout_hidden: float = 0.0,
        dropout_out: float = 0.0,
        weight_drop: float = 0.0,
        forget_bias: float | None = None,
        init_range: float = 0.1,
    ):
        super().__init__()
        embedding = width if embedding is None else embedding
        check_positive(vocab_size=vocab_size, layers=layers, width=width, embedding=embedding)
        check_rate(dropout_embedding=dropout_embedding, dropout_in=dropout_in, dropout_hidden=dropout_hidden)
        check_rate(dropout_out=dropout_out, weight_drop=weight_drop)
        if dropout_hidden and layers == 1:
            raise UserError(f"dropout_hidden={dropout_hidden} acts between LSTM layers, of which there is one: set it to 0.")
        self.vocab_size, self.dropout_embedding = vocab_size, dropout_embedding
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.input_dropout = LockedDropout(dropout_in)
        self.hidden_dropout = LockedDropout(dropout_hidden)
        self.output_dropout = LockedDropout(dropout_out)
        widths = [width] * (layers - 1) + [embedding if tied else width]
        if len(set(widths)) == 1 and not dropout_hidden:
            stack = [nn.LSTM(embedding, width, layers, batch_first=True)]
        else:
            stack = [nn.LSTM(size, out, batch_first=True) for size, out in zip([embedding, *widths], widths)]
        self.lstm = nn.ModuleList(stack)
        self.head = nn.Linear(widths[-1], vocab_size)
        if tied:
            self.head.weight = self.embedding.weight
        self._init(forget_bias, init_range)
        if weight_drop:
            for lstm in stack:
                for layer in range(lstm.num_layers):
                    parametrize.register_parametrization(lstm, f"weight_hh_l{layer}", DropConnect(weight_drop))
                follow_parametrizations(lstm)

    def _init(self, forget_bias: float | None, init_range: float) -> None:
        nn.init.uniform_(self.embedding.weight, -init_range, init_range)
        nn.init.zeros_(self.head.bias)
        if forget_bias is None:
            return
        for name, parameter in self.lstm.named_parameters():
            if "bias" in name:
                # gates stand in the order input, forget, cell, output
                forget = parameter.detach().chunk(4)[1]
                forget.fill_(forget_bias if "bias_ih" in name else 0.0)

    def forward_features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs of the last layer, [B, T, its width], for ``tokens`` int64 [B, T], and the state after them."""
        x = self.embedding(tokens)
        if self.training and self.dropout_embedding:
            x = x * F.dropout(x.new_ones(self.vocab_size, 1), self.dropout_embedding)[tokens]
        x = self.input_dropout(x)
        after = []
        for i, lstm in enumerate(self.lstm):
            x, its_state = lstm(x if i == 0 else self.hidden_dropout(x), None if state is None else state[i])
            after.append(its_state)
        return x, tuple(after)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits [B, T, V] of the token after each of ``tokens`` (int64 [B, T]), and the state after the last.

        ``state`` None is all zeros.
        """
        x, state = self.forward_features(tokens, state)
        return self.head(self.output_dropout(x)), state

    def reset(self, state: State, fresh: Tensor) -> State | None:
        """``state`` with the streams zeroed where ``fresh`` (bool [B]) is true; None if all of another number of streams start.

        Raises:
            UserError: the number of streams changed while some were to go on.
        """
        if state[0][0].shape[1] != len(fresh):
            if bool(fresh.all()):
                return None
            raise UserError(f"a state of {state[0][0].shape[1]} streams cannot go on with {len(fresh)}: keep the batch size.")
        where = fresh[None, :, None]
        return tuple((h.masked_fill(where, 0), c.masked_fill(where, 0)) for h, c in state)
